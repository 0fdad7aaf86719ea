-- ARGV: batch id, step, policy version, barren groups that raise an alarm (0 for none), number trained, trained ids,
-- then (dropped id, reason) pairs.
-- Returns {'ok', alarm (0/1)}, {'unknown'}, {'state', state} or {'partition', missing ids, foreign ids}.
local batch_id, n_trained, patience = ARGV[1], tonumber(ARGV[5]), tonumber(ARGV[4])
local batch = get(K.batch(batch_id), 'state', 'kind')
if not batch.state then
  return { 'unknown' }
elseif batch.state == 'acked' then
  return { 'ok', 0 }
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
local episodes, barren, fruitful = {}, 0, false
for _, group in ipairs(group_ids(batch_id)) do
  local filtered = true
  for _, id in ipairs(deliverable(group)) do
    episodes[id] = true
    if not reasons[id] then
      missing[#missing + 1] = id
    end
    fruitful = fruitful or reasons[id] == ''
    filtered = filtered and string.sub(reasons[id] or '', 1, 9) == 'filtered_'
  end
  barren = barren + (filtered and 1 or 0)
end
for id in pairs(reasons) do
  if not episodes[id] then
    foreign[#foreign + 1] = id
  end
end
if #missing + #foreign > 0 then
  return { 'partition', missing, foreign }
end

redis.call('HSET', K.batch(batch_id), 'step', ARGV[2], 'policy_version', ARGV[3])
local groups = end_batch(batch_id, 'acked')
for id, reason in pairs(reasons) do
  if redis.call('HEXISTS', K.episode(id), 'consumed') == 1 then
    redis.call('HINCRBY', K.counts(batch.kind), 'duplicated', 1)
  end
  consume(id, batch.kind, reason)
end
for _, group in ipairs(groups) do
  end_group(group)
end

-- A filter that lets nothing through would have the trainer ask for groups for ever.
local counts = K.counts(batch.kind)
if fruitful then
  redis.call('HSET', counts, 'barren', 0)
  redis.call('HDEL', K.alarms, 'filter_rejects_all')
elseif barren > 0 and redis.call('HINCRBY', counts, 'barren', barren) >= patience and patience > 0 and batch.kind == 'train' then
  local text = string.format('the filter rejected the last %s groups whole', redis.call('HGET', counts, 'barren'))
  redis.call('HSET', K.alarms, 'filter_rejects_all', text)
  emit('alarm', { name = 'filter_rejects_all', detail = text })
  return { 'ok', 1 }
end
return { 'ok', 0 }
