-- Everything the audit needs, at one moment: per kind
-- {kind, episodes, queued, delayed, leased episodes, ready groups, groups, {counts}, {drops}, {retired}}, then the completed episodes.
local reply = {}
for _, kind in ipairs(KINDS) do
  local episodes, groups, leased = {}, {}, {}
  for _, id in ipairs(redis.call('SMEMBERS', K.episodes(kind))) do
    local record = redis.call('HMGET', K.episode(id), 'state', 'group', 'consumed', 'reason')
    table.insert(record, 1, id)
    episodes[#episodes + 1] = record
  end
  for _, id in ipairs(redis.call('SMEMBERS', K.groups(kind))) do
    local record = redis.call('HMGET', K.group(id), 'state', 'size', 'finals', 'deliver')
    table.insert(record, 1, id)
    groups[#groups + 1] = record
  end
  for _, lease in ipairs(redis.call('ZRANGE', K.leases(kind), 0, -1)) do
    leased[#leased + 1] = redis.call('HGET', K.lease_episode, lease) or ''
  end
  reply[#reply + 1] = {
    kind,
    episodes,
    redis.call('ZRANGE', K.queue(kind), 0, -1),
    redis.call('ZRANGE', K.delayed(kind), 0, -1),
    leased,
    redis.call('ZRANGE', K.ready(kind), 0, -1),
    groups,
    redis.call('HGETALL', K.counts(kind)),
    redis.call('HGETALL', K.drops(kind)),
    redis.call('HGETALL', K.retired_counts(kind)),
  }
end
reply[#reply + 1] = redis.call('ZRANGE', K.completed, 0, -1)
reply[#reply + 1] = redis.call('SMEMBERS', K.adhoc)
return reply
