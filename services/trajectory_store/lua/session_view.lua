-- KEYS: the session. Returns {created, sealed, field names, calls of a packed tree}, {} where it is unknown. The records themselves stay here.
local key = KEYS[1]
if redis.call('EXISTS', key) == 0 then
  return {}
end
return { redis.call('HGET', key, 'created'), redis.call('HGET', key, 'sealed'), redis.call('HKEYS', key), redis.call('HGET', key, 'n_calls') }
