-- KEYS: the session. ARGV: intent field, call field, digest. Returns 'ok', 'unknown', 'sealed' or 'digest'.
local known = redis.call('HMGET', KEYS[1], 'created', 'sealed', ARGV[1])
if not known[1] then
  return 'unknown'
elseif known[2] then
  return 'sealed'
elseif known[3] then
  return known[3] == ARGV[3] and 'ok' or 'digest'
elseif redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
return 'ok'
