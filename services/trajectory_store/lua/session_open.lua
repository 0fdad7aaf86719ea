-- ARGV: session id, ttl_s, opener or '', digest of a key or '', grants at the start of the trial ('' where none is needed).
-- Returns {'ok', created, sealed, field names, calls of a packed tree, closed}, {'exists'}, {'bound', session of the key} or {'no_grant'};
-- unless it is ok nothing was written. With an opener the session must be new, or made by that opener before.
local id, ttl, opener, digest, grants = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local key = K.session(id)
local session = get(key, 'created', 'opener')

local function is_open(other)
  local known = get(K.session(other), 'created', 'sealed')
  return known.created and not known.sealed
end

if session.created and opener ~= '' and session.opener ~= opener then
  return { 'exists' }
end
if not session.created then
  local bound = digest ~= '' and redis.call('GET', K.session_key(digest))
  if bound and is_open(bound) then
    return { 'bound', bound }
  end
  if grants ~= '' then
    local left = tonumber(redis.call('GET', K.grants) or grants)
    if left < 1 then
      return { 'no_grant' }
    end
    redis.call('SET', K.grants, left - 1)
  end
  local time = now()
  redis.call('HSET', key, 'created', seconds(time), 'touched', seconds(time), 'ttl', ttl)
  redis.call('ZADD', K.unclaimed, seconds(time + ttl), id)
  if opener ~= '' then
    redis.call('HSET', key, 'opener', opener)
  end
  if digest ~= '' then
    redis.call('HSET', key, 'key', digest)
    redis.call('SET', K.session_key(digest), id)
  end
else
  redis.call('HSET', key, 'touched', seconds(now()))
end
local fields = redis.call('HMGET', key, 'created', 'sealed', 'n_calls', 'closed')
return { 'ok', fields[1], fields[2], redis.call('HKEYS', key), fields[3], fields[4] }
