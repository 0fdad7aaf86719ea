-- ARGV: episode id, attempt, lease id or '', kind, group id, retryable (0/1), who, why, head, messages, max_attempts, retry_delay_s.
-- Returns {outcome}, or {'mismatch', kind, group} where the episode was enqueued as another kind or in another group.
local id, attempt, lease, kind, group, retryable = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1'
local key = K.episode(id)
local episode = get(key, 'state', 'kind', 'group', 'attempt', 'lease', 'final_attempt', 'adhoc')

-- Comes before all other writes: Redis looks at its memory limit only until a script has written something.
local function keep_body()
  redis.call('HSET', key, 'head', ARGV[9], 'final_attempt', attempt)
  redis.call('SET', K.messages(id), ARGV[10])
end

if not episode.state then
  keep_body()
  move('episode', key, 'final')
  redis.call('HSET', key, 'kind', kind, 'group', group, 'attempt', attempt, 'adhoc', 1)
  redis.call('SADD', K.adhoc, id)
  complete(id)
  return { 'stored' }
end
if episode.kind ~= kind or (episode.group ~= group and not episode.adhoc) then
  return { 'mismatch', episode.kind, episode.group }
end
if episode.state == 'final' then
  if not episode.adhoc then
    redis.call('HINCRBY', K.counts(kind), 'duplicates_refused', 1)
  end
  return { episode.final_attempt == attempt and 'duplicate' or 'superseded' }
end

if retryable then
  local holds = episode.state == 'leased' and (lease == episode.lease or (lease == '' and attempt == episode.attempt))
  if not holds then
    return { 'retry' } -- it was counted when the attempt lost its lease
  end
  keep_body()
  if not fail_attempt(id, ARGV[7], ARGV[8], tonumber(ARGV[11]), tonumber(ARGV[12])) then
    redis.call('HDEL', key, 'head', 'final_attempt')
    redis.call('DEL', K.messages(id))
    return { 'retry' }
  end
else
  keep_body()
  if episode.state == 'leased' then
    end_lease(id)
  end
  redis.call('ZREM', K.queue(kind), id)
  redis.call('ZREM', K.delayed(kind), id)
  finish(id)
end
return { 'stored' }
