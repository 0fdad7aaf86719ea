-- ARGV: new batch id, consumer id, kind, n_groups, ttl_s, allow_partial (0/1), oldest version that is fresh enough or ''.
-- Returns {} where nothing is there, else {batch id, redelivered (0/1), expires_at, {group id, episode id, …}, …}.
-- A batch whose time is over stays with its consumer until somebody else asks for groups.
local new_id, consumer, kind, wanted, oldest = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[7])
local time = now()
local expires = seconds(time + tonumber(ARGV[5]))

local function reply(batch_id, redelivered)
  redis.call('ZADD', K.batch_leases(kind), expires, batch_id)
  local rows = { batch_id, redelivered, expires }
  for _, group in ipairs(group_ids(batch_id)) do
    local row = deliverable(group)
    table.insert(row, 1, group)
    rows[#rows + 1] = row
  end
  return rows
end

local held = redis.call('HGET', K.holders(kind), consumer)
if held then
  return reply(held, 1)
end
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', K.batch_leases(kind), '-inf', seconds(time))) do
  give_back(batch, 'expired')
end

-- Drops the members that are too old. False where none is left; then the group is done.
local function still_fresh(group)
  local ids, left = deliverable(group), 0
  for _, id in ipairs(ids) do
    if tonumber(redis.call('HGET', K.episode(id), 'oldest') or oldest) < oldest then
      consume(id, kind, 'stale')
    else
      left = left + 1
    end
  end
  redis.call('HSET', K.group(group), 'deliver', left)
  touch(K.group(group))
  if left == 0 then
    redis.call('ZREM', K.ready(kind), group)
    end_group(group)
  end
  return left > 0
end

local groups, start = {}, 0
while #groups < wanted do
  local found = redis.call('ZRANGE', K.ready(kind), start, start)[1]
  if not found then
    break
  end
  if not oldest or still_fresh(found) then
    groups[#groups + 1] = found
    start = start + 1
  end
end
if #groups == 0 or (#groups < wanted and ARGV[6] == '0') then
  return {}
end

-- Sizes are fixed now, because every rank must split the batch alike and bodies are packed meanwhile.
local function size_of(group)
  local bytes = 0
  for _, id in ipairs(redis.call('ZRANGE', K.members(group), 0, -1)) do
    bytes = bytes + tonumber(redis.call('HGET', K.episode(id), 'bytes') or 0)
  end
  return bytes
end

local episodes, sizes = 0, {}
for index, group in ipairs(groups) do
  sizes[index] = size_of(group)
  move('group', K.group(group), 'leased')
  redis.call('ZREM', K.ready(kind), group)
  redis.call('HSET', K.group(group), 'batch', new_id)
  episodes = episodes + tonumber(redis.call('HGET', K.group(group), 'deliver'))
end
move('batch', K.batch(new_id), 'leased')
redis.call('HSET', K.batch(new_id), 'kind', kind, 'consumer', consumer, 'groups', cjson.encode(groups), 'sizes', cjson.encode(sizes))
redis.call('HSET', K.holders(kind), consumer, new_id)
redis.call('HINCRBY', K.counts(kind), 'leased', episodes)
emit('batch', { batch_id = new_id, kind = kind, state = 'leased', groups = #groups, consumer_id = consumer })
return reply(new_id, 0)
