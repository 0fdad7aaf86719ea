-- ARGV: new batch id, consumer id, kind, n_groups, ttl_s, allow_partial (0/1).
-- Returns {} where nothing is there, else {batch id, redelivered (0/1), expires_at, {group id, episode id, …}, …}.
-- A batch whose time is over stays with its consumer until somebody else asks for groups.
local new_id, consumer, kind, wanted = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local time = now()
local expires = seconds(time + tonumber(ARGV[5]))

local function reply(batch_id, redelivered)
  redis.call('ZADD', K.batch_leases(kind), expires, batch_id)
  local rows = { batch_id, redelivered, expires }
  for _, group in ipairs(group_ids(batch_id)) do
    local row = redis.call('ZRANGE', K.members(group), 0, -1)
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
local ready = redis.call('ZCARD', K.ready(kind))
if ready == 0 or (ready < wanted and ARGV[6] == '0') then
  return {}
end

local groups, episodes = redis.call('ZRANGE', K.ready(kind), 0, wanted - 1), 0
for _, group in ipairs(groups) do
  move('group', K.group(group), 'leased')
  redis.call('ZREM', K.ready(kind), group)
  redis.call('HSET', K.group(group), 'batch', new_id)
  episodes = episodes + tonumber(redis.call('HGET', K.group(group), 'size'))
end
move('batch', K.batch(new_id), 'leased')
redis.call('HSET', K.batch(new_id), 'kind', kind, 'consumer', consumer, 'groups', cjson.encode(groups))
redis.call('HSET', K.holders(kind), consumer, new_id)
redis.call('HINCRBY', K.counts(kind), 'leased', episodes)
return reply(new_id, 0)
