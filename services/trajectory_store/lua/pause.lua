-- ARGV: pause (1) or resume (0), reason, kinds. Returns {running, paused kinds and their reasons, flat}.
local running = 0
for i = 3, #ARGV do
  local known = redis.call('HGET', K.paused, ARGV[i])
  if ARGV[1] == '1' and known ~= ARGV[2] then
    redis.call('HSET', K.paused, ARGV[i], ARGV[2])
    emit('paused', { kind = ARGV[i], reason = ARGV[2] })
  elseif ARGV[1] == '0' and known then
    redis.call('HDEL', K.paused, ARGV[i])
    emit('resumed', { kind = ARGV[i] })
  end
  running = running + redis.call('ZCARD', K.leases(ARGV[i]))
end
return { running, redis.call('HGETALL', K.paused) }
