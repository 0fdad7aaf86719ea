-- KEYS: the session. ARGV: prefix of field names. Returns {name, value, …} of the fields that begin with it, {} where there is none,
-- false where the session is unknown. The call records stay here.
if redis.call('HEXISTS', KEYS[1], 'created') == 0 then
  return false
end
local found = {}
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, #ARGV[1]) == ARGV[1] then
    found[#found + 1] = name
    found[#found + 1] = redis.call('HGET', KEYS[1], name)
  end
end
return found
