-- ARGV: reason, number of episode ids, episode ids, group ids. Returns {cancelled, final already, {unknown ids}}.
-- A cancelled episode is final at once: its worker learns from the next heartbeat that the lease is lost, and no attempt follows.
local n, cancelled, final, unknown, ids = tonumber(ARGV[2]), 0, 0, {}, {}
for i = 3, 2 + n do
  ids[#ids + 1] = ARGV[i]
end
for i = 3 + n, #ARGV do
  local members = redis.call('ZRANGE', K.members(ARGV[i]), 0, -1)
  if #members == 0 then
    unknown[#unknown + 1] = ARGV[i]
  end
  for _, id in ipairs(members) do
    ids[#ids + 1] = id
  end
end
for _, id in ipairs(ids) do
  local episode = get(K.episode(id), 'state', 'kind')
  if not episode.state then
    unknown[#unknown + 1] = id
  elseif episode.state == 'final' then
    final = final + 1
  else
    redis.call('HSET', K.episode(id), 'failed_who', 'infra', 'failed_why', 'cancelled: ' .. ARGV[1])
    if episode.state == 'leased' then
      end_lease(id)
    end
    leave_queue(id, episode.kind)
    finish(id, 0, 'cancelled', { status = 'failed', who = 'infra' })
    cancelled = cancelled + 1
  end
end
return { cancelled, final, unknown }
