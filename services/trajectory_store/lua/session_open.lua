-- KEYS: the session. Returns {created, sealed, field names}.
local key = KEYS[1]
if redis.call('EXISTS', key) == 0 then
  local time = redis.call('TIME')
  redis.call('HSET', key, 'created', string.format('%d.%06d', time[1], time[2]))
end
return { redis.call('HGET', key, 'created'), redis.call('HGET', key, 'sealed'), redis.call('HKEYS', key) }
