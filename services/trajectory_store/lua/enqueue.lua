-- ARGV: six per request: episode id, kind, group id, group size, sample index, request as JSON.
-- Returns {'ok', enqueued, known} or {'conflict', text}; on conflict nothing was written.
local fresh, joined = {}, {}

for i = 1, #ARGV, 6 do
  local id, kind, group, size = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local episode = get(K.episode(id), 'state', 'adhoc')
  if episode.adhoc then
    return { 'conflict', 'episode ' .. id .. ' was stored already without having been enqueued; choose another episode_id' }
  end
  if not episode.state and not fresh[id] then
    fresh[id] = true
    local known = joined[group] or get(K.group(group), 'kind', 'size')
    if (known.kind or kind) ~= kind or (known.size or size) ~= size then
      return { 'conflict', string.format('group %s is kind=%s group_size=%s; %s says %s and %s', group, known.kind, known.size, id, kind, size) }
    end
    local count = (known.count or redis.call('ZCARD', K.members(group))) + 1
    if count > tonumber(size) then
      return { 'conflict', string.format('group %s has its %s members already; %s is one too many', group, size, id) }
    end
    joined[group] = { kind = kind, size = size, count = count }
  end
end

local enqueued = 0
for i = 1, #ARGV, 6 do
  local id, kind, group, size, index = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if fresh[id] then
    fresh[id] = nil
    enqueued = enqueued + 1
    local order = next_number('enqueued')
    redis.call('HSET', K.episode(id), 'kind', kind, 'group', group, 'order', order, 'request', ARGV[i + 5], 'attempt', 0, 'failures', 0)
    move('episode', K.episode(id), 'queued')
    redis.call('ZADD', K.queue(kind), order, id)
    redis.call('SADD', K.episodes(kind), id)
    if redis.call('SADD', K.groups(kind), group) == 1 then
      move('group', K.group(group), 'open')
      redis.call('HSET', K.group(group), 'kind', kind, 'size', size, 'finals', 0)
      redis.call('SADD', K.open_groups(kind), group)
    end
    redis.call('ZADD', K.members(group), index, id)
  end
end
return { 'ok', enqueued, #ARGV / 6 - enqueued }
