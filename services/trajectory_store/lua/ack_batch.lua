-- ARGV: batch id, step, policy version, examples kept per reason, number trained, trained ids, then (dropped id, reason) pairs.
-- Returns {'ok'}, {'unknown'}, {'state', state} or {'partition', missing ids, foreign ids}.
local batch_id, n_trained, keep = ARGV[1], tonumber(ARGV[5]), tonumber(ARGV[4])
local batch = get(K.batch(batch_id), 'state', 'kind')
if not batch.state then
  return { 'unknown' }
elseif batch.state == 'acked' then
  return { 'ok' }
elseif batch.state ~= 'leased' then
  return { 'state', batch.state }
end

local reasons, missing, foreign = {}, {}, {}
for i = 6, 5 + n_trained do
  reasons[ARGV[i]] = ''
end
for i = 6 + n_trained, #ARGV, 2 do
  reasons[ARGV[i]] = ARGV[i + 1]
end
local episodes = {}
for _, group in ipairs(group_ids(batch_id)) do
  for _, id in ipairs(redis.call('ZRANGE', K.members(group), 0, -1)) do
    episodes[id] = true
    if not reasons[id] then
      missing[#missing + 1] = id
    end
  end
end
for id in pairs(reasons) do
  if not episodes[id] then
    foreign[#foreign + 1] = id
  end
end
if #missing + #foreign > 0 then
  return { 'partition', missing, foreign }
end

local counts = K.counts(batch.kind)
for id, reason in pairs(reasons) do
  local key = K.episode(id)
  if reason == '' then
    if redis.call('HGET', key, 'consumed') == 'trained' then
      redis.call('HINCRBY', counts, 'duplicated', 1)
    end
    redis.call('HSET', key, 'consumed', 'trained')
    redis.call('HINCRBY', counts, 'trained', 1)
  else
    redis.call('HSET', key, 'consumed', 'dropped', 'reason', reason)
    redis.call('HINCRBY', counts, 'dropped', 1)
    redis.call('HINCRBY', K.drops(batch.kind), reason, 1)
    if redis.call('LLEN', K.drop_examples(reason)) < keep then
      redis.call('RPUSH', K.drop_examples(reason), id)
    end
  end
end
for _, group in ipairs(end_batch(batch_id, 'acked')) do
  move('group', K.group(group), 'done')
end
redis.call('HSET', K.batch(batch_id), 'step', ARGV[2], 'policy_version', ARGV[3])
return { 'ok' }
