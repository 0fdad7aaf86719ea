-- ARGV: token, worker id, limit, ttl_s, max_attempts, retry_delay_s.
-- Returns {lease id, attempt, expires_at, request} per lease, flat. The same token again returns the same leases:
-- the client repeats a command whose answer was lost.
local token, worker, limit, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
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

sweep(tonumber(ARGV[5]), tonumber(ARGV[6]))
local time = now()
local expires, count = seconds(time + ttl), 0
for _, kind in ipairs(KINDS) do
  if count < limit then
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
      say(lease, id, expires)
    end
  end
end
return reply
