-- KEYS: the session. Returns {created, sealed, field names, calls of a packed tree, closed}, {} where it is unknown.
local key = KEYS[1]
if redis.call('HEXISTS', key, 'created') == 0 then
  return {}
end
redis.call('HSET', key, 'sealed', 1)
local fields = redis.call('HMGET', key, 'created', 'sealed', 'n_calls', 'closed')
return { fields[1], fields[2], redis.call('HKEYS', key), fields[3], fields[4] }
