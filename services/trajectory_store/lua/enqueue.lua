-- ARGV: quorum (share of a group), most episodes that may wait, then six per request:
-- episode id, kind, group id, group size, sample index, request as JSON.
-- Returns {'ok', enqueued, known}, {'conflict', text}, {'full', waiting} or {'alarm', text}; unless it is ok nothing was written.
local quorum, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local fresh, joined, count_fresh, train = {}, {}, 0, false

for i = 3, #ARGV, 6 do
  local id, kind, group, size = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local episode = get(K.episode(id), 'state', 'adhoc')
  if episode.adhoc then
    return { 'conflict', 'episode ' .. id .. ' was stored already without having been enqueued; choose another episode_id' }
  end
  if not episode.state and not fresh[id] and redis.call('SISMEMBER', K.retired(kind), id) == 0 then
    fresh[id], count_fresh, train = true, count_fresh + 1, train or kind == 'train'
    local known = joined[group] or get(K.group(group), 'kind', 'size', 'state')
    if (known.kind or kind) ~= kind or (known.size or size) ~= size then
      return { 'conflict', string.format('group %s is kind=%s group_size=%s; %s says %s and %s', group, known.kind, known.size, id, kind, size) }
    end
    if known.state and known.state ~= 'open' then
      return { 'conflict', string.format('group %s is %s already; %s comes too late, give it another group_id', group, known.state, id) }
    end
    local count = (known.count or redis.call('ZCARD', K.members(group))) + 1
    if count > tonumber(size) then
      return { 'conflict', string.format('group %s has its %s members already; %s is one too many', group, size, id) }
    end
    joined[group] = { kind = kind, size = size, count = count }
  end
end
if count_fresh > 0 then
  local waiting = 0
  for _, kind in ipairs(KINDS) do
    waiting = waiting + redis.call('ZCARD', K.queue(kind)) + redis.call('ZCARD', K.delayed(kind))
  end
  if waiting + count_fresh > limit then
    return { 'full', waiting }
  end
  local alarm = train and redis.call('HGET', K.alarms, 'filter_rejects_all')
  if alarm then
    return { 'alarm', alarm }
  end
end

local enqueued = 0
for i = 3, #ARGV, 6 do
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
      local needed = math.max(1, math.ceil(tonumber(size) * quorum))
      redis.call('HSET', K.group(group), 'kind', kind, 'size', size, 'finals', 0, 'quorum', needed)
      redis.call('SADD', K.open_groups(kind), group)
    end
    redis.call('ZADD', K.members(group), index, id)
  end
end
local known = (#ARGV - 2) / 6 - enqueued
if enqueued > 0 then
  emit('enqueued', { episodes = enqueued })
end
return { 'ok', enqueued, known }
