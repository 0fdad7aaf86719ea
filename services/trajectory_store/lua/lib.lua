-- Shared by all scripts of the queue, the groups and the batches. K (keys) and EDGES (transition tables) come before it.
-- A script checks first and writes afterwards, because Redis does not undo the writes of a script that raises.

local KINDS = { 'eval', 'demo', 'train' } -- in the order in which they are served
local SWEEP_LIMIT = 512

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

-- Redis cuts Lua numbers to integers in replies, so times travel as text.
local function seconds(time)
  return string.format('%.6f', time)
end

local function next_number(name)
  return redis.call('HINCRBY', K.sequence, name, 1)
end

local function get(key, ...)
  local values = redis.call('HMGET', key, ...)
  local record = {}
  for index, name in ipairs({ ... }) do
    record[name] = values[index] or nil
  end
  return record
end

local function move(machine, key, to)
  local from = redis.call('HGET', key, 'state') or ''
  if not (EDGES[machine][from] or {})[to] then
    error(string.format('illegal transition of %s %s: %s to %s', machine, key, from, to))
  end
  redis.call('HSET', key, 'state', to)
end

-- Episodes

local function complete(id)
  redis.call('HSET', K.episode(id), 'final_at', seconds(now()))
  redis.call('ZADD', K.completed, next_number('completed'), id)
end

local function finish(id)
  local episode = get(K.episode(id), 'kind', 'group')
  move('episode', K.episode(id), 'final')
  complete(id)
  redis.call('HINCRBY', K.counts(episode.kind), 'final', 1)
  local group = K.group(episode.group)
  local finals = redis.call('HINCRBY', group, 'finals', 1)
  if finals == tonumber(redis.call('HGET', group, 'size')) then
    local number = next_number('ready')
    move('group', group, 'ready')
    redis.call('HSET', group, 'ready_number', number)
    redis.call('ZADD', K.ready(episode.kind), number, episode.group)
    redis.call('SREM', K.open_groups(episode.kind), episode.group)
  end
end

local function end_lease(id)
  local episode = get(K.episode(id), 'kind', 'lease')
  redis.call('ZREM', K.leases(episode.kind), episode.lease)
  redis.call('HDEL', K.lease_episode, episode.lease)
  redis.call('HDEL', K.episode(id), 'lease', 'worker')
end

local function enqueue_again(id)
  local episode = get(K.episode(id), 'kind', 'order')
  move('episode', K.episode(id), 'queued')
  redis.call('ZADD', K.queue(episode.kind), episode.order, id)
end

-- One attempt failed for a reason that another attempt may not meet. True where it was the last one.
local function fail_attempt(id, who, why, max_attempts, retry_delay)
  local key = K.episode(id)
  local kind = redis.call('HGET', key, 'kind')
  end_lease(id)
  local failures = redis.call('HINCRBY', key, 'failures', 1)
  redis.call('HSET', key, 'failed_who', who, 'failed_why', why)
  if failures >= max_attempts then
    finish(id)
    return true
  end
  move('episode', key, 'delayed')
  redis.call('ZADD', K.delayed(kind), now() + retry_delay * failures, id)
  redis.call('HINCRBY', K.counts(kind), 'retries', 1)
  return false
end

-- Ends expired leases and queues what is due. Returns how many episodes were queued and how many became final.
local function sweep(max_attempts, retry_delay)
  local time, queued, final = seconds(now()), 0, 0
  for _, kind in ipairs(KINDS) do
    for _, lease in ipairs(redis.call('ZRANGEBYSCORE', K.leases(kind), '-inf', time, 'LIMIT', 0, SWEEP_LIMIT)) do
      local id = redis.call('HGET', K.lease_episode, lease)
      local times = redis.call('HINCRBY', K.episode(id), 'expired', 1)
      if fail_attempt(id, 'infra', string.format('lease expired %d times', times), max_attempts, retry_delay) then
        final = final + 1
      end
    end
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.delayed(kind), '-inf', time, 'LIMIT', 0, SWEEP_LIMIT)) do
      redis.call('ZREM', K.delayed(kind), id)
      enqueue_again(id)
      queued = queued + 1
    end
  end
  return queued, final
end

-- Batches

local function group_ids(batch_id)
  return cjson.decode(redis.call('HGET', K.batch(batch_id), 'groups'))
end

-- Ends the claim of a consumer on a batch, whatever the reason. Returns the groups of the batch.
local function end_batch(batch_id, to)
  local batch = get(K.batch(batch_id), 'kind', 'consumer')
  move('batch', K.batch(batch_id), to)
  redis.call('ZREM', K.batch_leases(batch.kind), batch_id)
  redis.call('HDEL', K.holders(batch.kind), batch.consumer)
  local ids = group_ids(batch_id)
  local episodes = 0
  for _, id in ipairs(ids) do
    episodes = episodes + tonumber(redis.call('HGET', K.group(id), 'size'))
    redis.call('HDEL', K.group(id), 'batch')
  end
  redis.call('HINCRBY', K.counts(batch.kind), 'leased', -episodes)
  return ids
end

local function give_back(batch_id, to)
  local kind = redis.call('HGET', K.batch(batch_id), 'kind')
  for _, id in ipairs(end_batch(batch_id, to)) do
    move('group', K.group(id), 'ready')
    redis.call('ZADD', K.ready(kind), redis.call('HGET', K.group(id), 'ready_number'), id)
  end
end
