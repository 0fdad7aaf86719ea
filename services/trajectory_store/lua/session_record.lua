-- KEYS: the session. ARGV: intent field, call field, encoded call record. Returns 'ok', 'unknown' or 'sealed'.
local known = redis.call('HMGET', KEYS[1], 'created', 'sealed')
if not known[1] then
  return 'unknown'
elseif redis.call('HEXISTS', KEYS[1], ARGV[2]) == 1 then
  return 'ok'
elseif known[2] then
  return 'sealed'
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('HINCRBY', KEYS[1], 'recorded', 1)
redis.call('HDEL', KEYS[1], ARGV[1])
return 'ok'
