-- Sizes and counters of all kinds at one moment: per kind
-- {kind, enqueued, queued, running, ready groups, {counts}, {drops}}, then {newest policy version, trajectories, bytes, {alarms}, {paused}}.
local reply = {}
for _, kind in ipairs(KINDS) do
  local retired_adhoc = tonumber(redis.call('HGET', K.retired_counts(kind), 'adhoc') or 0)
  reply[#reply + 1] = {
    kind,
    redis.call('SCARD', K.episodes(kind)) + redis.call('SCARD', K.retired(kind)) - retired_adhoc,
    redis.call('ZCARD', K.queue(kind)) + redis.call('ZCARD', K.delayed(kind)),
    redis.call('ZCARD', K.leases(kind)),
    redis.call('ZCARD', K.ready(kind)),
    redis.call('HGETALL', K.counts(kind)),
    redis.call('HGETALL', K.drops(kind)),
  }
end
reply[#reply + 1] = {
  redis.call('ZREVRANGE', K.policy_versions, 0, 0)[1] or '-1',
  redis.call('ZCARD', K.completed),
  tonumber(redis.call('HGET', K.totals, 'bytes') or 0),
  redis.call('HGETALL', K.alarms),
  redis.call('HGETALL', K.paused),
  redis.call('HGETALL', K.losses),
}
return reply
