-- KEYS: the session. Returns {created, sealed, field names}, {} where it is unknown. The records themselves stay here.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end
return { redis.call('HGET', KEYS[1], 'created'), redis.call('HGET', KEYS[1], 'sealed'), redis.call('HKEYS', KEYS[1]) }
