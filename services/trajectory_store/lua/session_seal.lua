-- KEYS: the session. Returns {created, sealed, field names, calls of a packed tree}, {} where it is unknown.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end
redis.call('HSET', KEYS[1], 'sealed', 1)
return { redis.call('HGET', KEYS[1], 'created'), '1', redis.call('HKEYS', KEYS[1]), redis.call('HGET', KEYS[1], 'n_calls') }
