-- ARGV: token, worker id, limit, ttl_s, group deadline_s (0 for none), max_attempts, retry delay, longest delay.
-- Returns {lease id, attempt, expires_at, request} per lease, flat. The same token again returns the same leases:
-- the client repeats a command whose answer was lost.
local token, worker, limit, ttl, deadline = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local reply = {}

local function say(lease, id, expires)
  local episode = get(K.episode(id), 'attempt', 'request')
  for _, value in ipairs({ lease, episode.attempt, expires, episode.request }) do
    reply[#reply + 1] = value
  end
end

for i = 1, limit do
  local lease = token .. '.' .. i
  local id = redis.call('HGET', K.lease_episode, lease)
  if not id then
    break
  end
  say(lease, id, redis.call('ZSCORE', K.leases(redis.call('HGET', K.episode(id), 'kind')), lease))
end
if #reply > 0 then
  return reply
end

sweep(retry_from(6))
local time = now()
local expires, count = seconds(time + ttl), 0

-- Evaluation groups wait for all their members, because pass^k needs them.
local function start_deadline(kind, group)
  if deadline > 0 and kind == 'train' and redis.call('HSETNX', K.group(group), 'started', seconds(time)) == 1 then
    redis.call('ZADD', K.deadlines(kind), seconds(time + deadline), group)
  end
end

for _, kind in ipairs(KINDS) do
  if count < limit and redis.call('HEXISTS', K.paused, kind) == 0 then
    local popped = redis.call('ZPOPMIN', K.queue(kind), limit - count)
    for i = 1, #popped, 2 do
      local id = popped[i]
      local key = K.episode(id)
      count = count + 1
      local lease = token .. '.' .. count
      move('episode', key, 'leased')
      redis.call('HINCRBY', key, 'attempt', 1)
      redis.call('HSET', key, 'lease', lease, 'worker', worker, 'leased_at', seconds(time))
      redis.call('ZADD', K.leases(kind), expires, lease)
      redis.call('HSET', K.lease_episode, lease, id)
      start_deadline(kind, redis.call('HGET', key, 'group'))
      say(lease, id, expires)
    end
  end
end
if count > 0 then
  emit('leased', { episodes = count, worker_id = worker })
end
return reply
