-- KEYS: the session. Returns {created, sealed, field names, calls of a packed tree, closed}, {} where it is unknown. The records stay here.
local key = KEYS[1]
local fields = redis.call('HMGET', key, 'created', 'sealed', 'n_calls', 'closed')
if not fields[1] then
  return {}
end
return { fields[1], fields[2], redis.call('HKEYS', key), fields[3], fields[4] }
