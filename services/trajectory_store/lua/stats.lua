-- Sizes and counters of all kinds at one moment: per kind
-- {kind, enqueued, queued, running, ready groups, {counts}, {drops}}, then the newest policy version where there is one.
local reply = {}
for _, kind in ipairs(KINDS) do
  reply[#reply + 1] = {
    kind,
    redis.call('SCARD', K.episodes(kind)),
    redis.call('ZCARD', K.queue(kind)) + redis.call('ZCARD', K.delayed(kind)),
    redis.call('ZCARD', K.leases(kind)),
    redis.call('ZCARD', K.ready(kind)),
    redis.call('HGETALL', K.counts(kind)),
    redis.call('HGETALL', K.drops(kind)),
  }
end
reply[#reply + 1] = redis.call('ZREVRANGE', K.policy_versions, 0, 0)
return reply
