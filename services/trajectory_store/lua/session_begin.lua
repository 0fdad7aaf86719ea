-- KEYS: the session. ARGV: intent field, call field, digest. Returns {'ok', recorded calls}, {'unknown'}, {'sealed'} or {'digest'}.
local known = redis.call('HMGET', KEYS[1], 'created', 'sealed', ARGV[1], 'recorded')
if not known[1] then
  return { 'unknown' }
elseif known[2] then
  return { 'sealed' }
elseif known[3] and known[3] ~= ARGV[3] then
  return { 'digest' }
elseif not known[3] and redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3], 'touched', string.format('%d.%06d', time[1], time[2]))
end
return { 'ok', tonumber(known[4] or 0) }
