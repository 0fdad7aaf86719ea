-- KEYS: the session. ARGV: ttl_s. Returns {created, sealed, field names, calls of a packed tree}.
local key = KEYS[1]
if redis.call('EXISTS', key) == 0 then
  local time = redis.call('TIME')
  redis.call('HSET', key, 'created', string.format('%d.%06d', time[1], time[2]))
  redis.call('EXPIRE', key, ARGV[1])
end
return { redis.call('HGET', key, 'created'), redis.call('HGET', key, 'sealed'), redis.call('HKEYS', key), redis.call('HGET', key, 'n_calls') }
