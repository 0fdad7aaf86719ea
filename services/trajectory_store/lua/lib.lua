-- Shared by all scripts of the queue, the groups and the batches. K (keys), EDGES (transition tables) and the constants in capitals
-- come before it. A script checks first and writes afterwards, because Redis does not undo the writes of a script that raises.

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

-- While an audit reads the records, it is told which of them change. Once a script, Redis is asked whether one does.
local audited
local function touch(key)
  if audited == nil then
    audited = redis.call('EXISTS', K.audit) == 1
  end
  if audited then
    redis.call('SADD', K.touched, key)
    redis.call('EXPIRE', K.touched, AUDIT_TTL_S)
  end
end

local function move(machine, key, to)
  local from = redis.call('HGET', key, 'state') or ''
  if not (EDGES[machine][from] or {})[to] then
    error(string.format('illegal transition of %s %s: %s to %s', machine, key, from, to))
  end
  redis.call('HSET', key, 'state', to)
  touch(key)
end

local function emit(event, fields)
  fields.event = event
  redis.call('XADD', K.events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'd', cjson.encode(fields))
end

-- Ledger

local function note_example(reason, text)
  if redis.call('LLEN', K.drop_examples(reason)) < EXAMPLES then
    redis.call('RPUSH', K.drop_examples(reason), text)
  end
end

-- Says what became of a final episode. It is said once: what is consumed is not in any later batch.
local function consume(id, kind, reason)
  local counts = K.counts(kind)
  touch(K.episode(id))
  if reason == '' then
    redis.call('HSET', K.episode(id), 'consumed', 'trained')
    redis.call('HINCRBY', counts, 'trained', 1)
    return
  end
  redis.call('HSET', K.episode(id), 'consumed', 'dropped', 'reason', reason)
  redis.call('HINCRBY', counts, 'dropped', 1)
  redis.call('HINCRBY', K.drops(kind), reason, 1)
  note_example(reason, id)
end

-- Groups

-- The members of a group that a batch hands out: final and not consumed.
local function deliverable(group)
  local ids = {}
  for _, id in ipairs(redis.call('ZRANGE', K.members(group), 0, -1)) do
    local episode = get(K.episode(id), 'state', 'consumed')
    if episode.state == 'final' and not episode.consumed then
      ids[#ids + 1] = id
    end
  end
  return ids
end

-- A group that is done and complete may be retired; its place in the order is the time at which that came true.
local function note_retirable(group)
  local record = get(K.group(group), 'state', 'size', 'finals')
  if record.state == 'done' and record.finals == record.size then
    redis.call('ZADD', K.retirable, seconds(now()), 'g:' .. group)
  end
end

local function end_group(group)
  move('group', K.group(group), 'done')
  note_retirable(group)
end

local function complete(id, kind, fields)
  redis.call('HSET', K.episode(id), 'final_at', seconds(now()))
  redis.call('ZADD', K.completed, next_number('completed'), id)
  fields.episode_id, fields.kind = id, kind
  emit('trajectory', fields)
end

local function leave_queue(id, kind)
  redis.call('ZREM', K.queue(kind), id)
  redis.call('ZREM', K.delayed(kind), id)
end

-- Makes a queued or delayed member of a group that is delivered without it final: nobody would use its result.
local function abandon(id, kind, group)
  leave_queue(id, kind)
  redis.call('HSET', K.episode(id), 'failed_who', 'infra', 'failed_why', 'its group was delivered without it')
  move('episode', K.episode(id), 'final')
  redis.call('HINCRBY', K.counts(kind), 'final', 1)
  redis.call('HINCRBY', K.group(group), 'finals', 1)
  touch(K.group(group))
  consume(id, kind, 'late')
  complete(id, kind, { group_id = group, status = 'failed' })
end

local function make_ready(group, kind)
  for _, id in ipairs(redis.call('ZRANGE', K.members(group), 0, -1)) do
    local state = redis.call('HGET', K.episode(id), 'state')
    if state == 'queued' or state == 'delayed' then
      abandon(id, kind, group)
    end
  end
  redis.call('SREM', K.open_groups(kind), group)
  redis.call('ZREM', K.deadlines(kind), group)
  local count = #deliverable(group)
  if count == 0 then
    end_group(group)
    return
  end
  local number = next_number('ready')
  move('group', K.group(group), 'ready')
  redis.call('HSET', K.group(group), 'ready_number', number, 'deliver', count)
  redis.call('ZADD', K.ready(kind), number, group)
  emit('group_ready', { group_id = group, kind = kind, members = count })
end

local function check_ready(group, kind)
  local record = get(K.group(group), 'size', 'finals', 'scored', 'quorum', 'overdue')
  local whole = record.finals == record.size
  if whole or (record.overdue and tonumber(record.scored or 0) >= tonumber(record.quorum)) then
    make_ready(group, kind)
  end
end

-- Makes an episode final. `scored` is 1 where it has a reward, `drop` a reason where the store itself decides that nobody trains on it.
local function finish(id, scored, drop, fields)
  local episode = get(K.episode(id), 'kind', 'group')
  local kind, group = episode.kind, episode.group
  move('episode', K.episode(id), 'final')
  redis.call('HINCRBY', K.counts(kind), 'final', 1)
  fields.group_id = group
  complete(id, kind, fields)
  redis.call('HINCRBY', K.group(group), 'finals', 1)
  touch(K.group(group))
  local open = redis.call('HGET', K.group(group), 'state') == 'open'
  if drop ~= '' or not open then
    consume(id, kind, drop ~= '' and drop or 'late')
  elseif scored == 1 then
    redis.call('HINCRBY', K.group(group), 'scored', 1)
  end
  if open then
    check_ready(group, kind)
  else
    note_retirable(group)
  end
end

-- Attempts

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
-- `retry` is {max_attempts, first delay, longest delay}; the delay doubles with every failure.
-- A member of a group that was delivered meanwhile is not tried again.
local function fail_attempt(id, who, why, retry)
  local key = K.episode(id)
  local episode = get(key, 'kind', 'group')
  end_lease(id)
  local failures = redis.call('HINCRBY', key, 'failures', 1)
  redis.call('HSET', key, 'failed_who', who, 'failed_why', why)
  if failures >= retry[1] or redis.call('HGET', K.group(episode.group), 'state') ~= 'open' then
    finish(id, 0, '', { status = 'failed', who = who })
    return true
  end
  move('episode', key, 'delayed')
  local delay = math.min(retry[2] * 2 ^ (failures - 1), retry[3])
  redis.call('ZADD', K.delayed(episode.kind), seconds(now() + delay), id)
  redis.call('HINCRBY', K.counts(episode.kind), 'retries', 1)
  emit('retry', { episode_id = id, kind = episode.kind, failures = failures, who = who })
  return false
end

local function retry_from(first)
  return { tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2]) }
end

-- Ends expired leases, queues what is due, closes groups past their deadline. Returns how many episodes were queued and how many final.
local function sweep(retry)
  local time, queued, final = seconds(now()), 0, 0
  for _, kind in ipairs(KINDS) do
    for _, lease in ipairs(redis.call('ZRANGEBYSCORE', K.leases(kind), '-inf', time, 'LIMIT', 0, SWEEP_LIMIT)) do
      local id = redis.call('HGET', K.lease_episode, lease)
      local times = redis.call('HINCRBY', K.episode(id), 'expired', 1)
      if fail_attempt(id, 'infra', string.format('lease expired %d times', times), retry) then
        final = final + 1
      end
    end
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.delayed(kind), '-inf', time, 'LIMIT', 0, SWEEP_LIMIT)) do
      redis.call('ZREM', K.delayed(kind), id)
      enqueue_again(id)
      queued = queued + 1
    end
    for _, group in ipairs(redis.call('ZRANGEBYSCORE', K.deadlines(kind), '-inf', time, 'LIMIT', 0, SWEEP_LIMIT)) do
      redis.call('ZREM', K.deadlines(kind), group)
      redis.call('HSET', K.group(group), 'overdue', 1)
      check_ready(group, kind)
      final = final + 1
    end
  end
  return queued, final
end

-- Sessions

-- Says why a session takes no more rewards; the first reason stands. A session that is not there is not made. Returns whether it was said now.
local function close_session(id, why)
  local key = K.session(id)
  return redis.call('HEXISTS', key, 'created') == 1 and redis.call('HSETNX', key, 'closed', why) == 1
end

-- Takes back the key that a client chose for a session, unless it names another one by now.
local function forget_key(id)
  local digest = redis.call('HGET', K.session(id), 'key')
  if digest and redis.call('GET', K.session_key(digest)) == id then
    redis.call('DEL', K.session_key(digest))
  end
end

-- A trajectory names the session: from now on it stays for as long as the trajectory does.
local function claim_session(id)
  if redis.call('HEXISTS', K.session(id), 'created') == 1 then
    redis.call('HSET', K.session(id), 'closed', 'trajectory')
  end
  redis.call('ZREM', K.unclaimed, id)
  forget_key(id)
end

-- Batches

local function group_ids(batch_id)
  return cjson.decode(redis.call('HGET', K.batch(batch_id), 'groups'))
end

-- Ends the claim of a consumer on a batch, whatever the reason. Returns the groups of the batch.
local function end_batch(batch_id, to)
  local batch = get(K.batch(batch_id), 'kind', 'consumer')
  move('batch', K.batch(batch_id), to)
  redis.call('EXPIRE', K.batch(batch_id), ENDED_BATCH_TTL_S)
  redis.call('ZREM', K.batch_leases(batch.kind), batch_id)
  redis.call('HDEL', K.holders(batch.kind), batch.consumer)
  local ids = group_ids(batch_id)
  local episodes = 0
  for _, id in ipairs(ids) do
    episodes = episodes + tonumber(redis.call('HGET', K.group(id), 'deliver'))
    redis.call('HDEL', K.group(id), 'batch')
  end
  redis.call('HINCRBY', K.counts(batch.kind), 'leased', -episodes)
  emit('batch', { batch_id = batch_id, kind = batch.kind, state = to, groups = #ids })
  return ids
end

local function give_back(batch_id, to)
  local kind = redis.call('HGET', K.batch(batch_id), 'kind')
  for _, id in ipairs(end_batch(batch_id, to)) do
    move('group', K.group(id), 'ready')
    redis.call('ZADD', K.ready(kind), redis.call('HGET', K.group(id), 'ready_number'), id)
  end
end
