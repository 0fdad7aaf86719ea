-- KEYS: the session. ARGV: reward field, reward as JSON, call field or '' for the whole session.
-- Returns 'ok', 'unknown', 'no_call' or why it takes no more rewards.
local known = redis.call('HMGET', KEYS[1], 'created', 'closed')
if not known[1] then
  return 'unknown'
elseif known[2] then
  return redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and 'ok' or known[2]
elseif ARGV[3] ~= '' and redis.call('HEXISTS', KEYS[1], ARGV[3]) == 0 then
  return 'no_call'
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], 'touched', string.format('%d.%06d', time[1], time[2]))
return 'ok'
