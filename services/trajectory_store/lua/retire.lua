-- ARGV: retire what is older than this time ('' for never), most trajectories ('' for any), most bytes ('' for any), limit.
-- Returns {retired episodes, {lists of spilled files as JSON}}. Only what is consumed, or was stored ad hoc, is retired; of it the ids stay,
-- so that a repeated request is still known. Deletes first: a full Redis allows deleting until it has room again.
local before, most, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local retired, spilled = 0, {}

local function over(since)
  return (before and since < before)
    or (most and redis.call('ZCARD', K.completed) > most)
    or (bytes and tonumber(redis.call('HGET', K.totals, 'bytes') or 0) > bytes)
end

local function retire_episode(id)
  local episode = get(K.episode(id), 'kind', 'consumed', 'reason', 'session', 'bytes', 'spilled', 'adhoc')
  redis.call('DEL', K.episode(id), K.messages(id))
  touch(K.episode(id))
  if episode.session then
    forget_key(episode.session)
    redis.call('DEL', K.session(episode.session))
  end
  redis.call('ZREM', K.completed, id)
  redis.call('SREM', episode.adhoc and K.adhoc or K.episodes(episode.kind), id)
  redis.call('SADD', K.retired(episode.kind), id)
  redis.call('HINCRBY', K.totals, 'bytes', -tonumber(episode.bytes or 0))
  if not episode.adhoc then
    local what = episode.consumed == 'trained' and 'trained' or 'dropped:' .. episode.reason
    redis.call('HINCRBY', K.retired_counts(episode.kind), what, 1)
  else
    redis.call('HINCRBY', K.retired_counts(episode.kind), 'adhoc', 1)
  end
  if episode.spilled then
    spilled[#spilled + 1] = episode.spilled
  end
  retired = retired + 1
end

while retired < tonumber(ARGV[4]) do
  local oldest = redis.call('ZRANGE', K.retirable, 0, 0, 'WITHSCORES')
  if #oldest == 0 or not over(tonumber(oldest[2])) then
    break
  end
  redis.call('ZREM', K.retirable, oldest[1])
  local id = string.sub(oldest[1], 3)
  if string.sub(oldest[1], 1, 2) == 'e:' then
    retire_episode(id)
  else
    for _, member in ipairs(redis.call('ZRANGE', K.members(id), 0, -1)) do
      retire_episode(member)
    end
    local kind = redis.call('HGET', K.group(id), 'kind')
    redis.call('DEL', K.members(id), K.group(id))
    touch(K.group(id))
    redis.call('SREM', K.groups(kind), id)
  end
end
if retired > 0 then
  emit('retired', { episodes = retired })
end
return { retired, spilled }
