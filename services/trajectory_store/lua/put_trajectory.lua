-- ARGV: 1 episode id, 2 attempt, 3 lease id or '', 4 kind, 5 group id, 6 retryable (0/1), 7 who, 8 why, 9 head, 10 messages,
-- 11 max_attempts, 12 retry delay, 13 longest delay, 14 scored (0/1), 15 oldest policy version or '', 16 session id or '',
-- 17 token tree or '', 18 calls in it, 19 bytes of messages and tree, 20 spilled files as JSON or '', 21 reason of a drop or '',
-- 22 prefix that the token tree needs or ''.
-- Returns {outcome}, {'mismatch', kind, group} where the episode was enqueued as another kind or in another group, or {'prefix'} where
-- Redis does not have that prefix.
local id, attempt, lease, kind, group, retryable = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1'
if ARGV[22] ~= '' and redis.call('HEXISTS', K.prefixes, ARGV[22]) == 0 then
  return { 'prefix' }
end
local key = K.episode(id)
local episode = get(key, 'state', 'kind', 'group', 'attempt', 'lease', 'final_attempt', 'adhoc')
local fields = { status = ARGV[14] == '1' and 'scored' or 'failed', who = ARGV[7] ~= '' and ARGV[7] or nil, attempt = tonumber(attempt) }

-- Comes before all other writes: Redis looks at its memory limit only until a script has written something.
local function keep_body()
  redis.call('HSET', key, 'head', ARGV[9], 'final_attempt', attempt, 'bytes', ARGV[19])
  redis.call('SET', K.messages(id), ARGV[10])
end

local function keep_tokens()
  local session = ARGV[16]
  redis.call('HINCRBY', K.totals, 'bytes', ARGV[19])
  if ARGV[20] ~= '' then
    redis.call('HSET', key, 'spilled', ARGV[20])
  end
  if ARGV[15] ~= '' then
    redis.call('HSET', key, 'oldest', ARGV[15])
  end
  if session == '' then
    return
  end
  redis.call('HSET', key, 'session', session)
  if ARGV[17] ~= '' then
    redis.call('HSET', K.session(session), 'created', seconds(now()), 'sealed', 1, 'tree', ARGV[17], 'n_calls', ARGV[18])
  else
    redis.call('RPUSH', K.unpacked, session .. '\n' .. id)
  end
  claim_session(session)
end

if not episode.state then
  for _, each in ipairs(KINDS) do
    if redis.call('SISMEMBER', K.retired(each), id) == 1 then
      return { 'duplicate' }
    end
  end
  keep_body()
  keep_tokens()
  move('episode', key, 'final')
  redis.call('HSET', key, 'kind', kind, 'group', group, 'attempt', attempt, 'adhoc', 1)
  redis.call('SADD', K.adhoc, id)
  redis.call('ZADD', K.retirable, seconds(now()), 'e:' .. id)
  fields.adhoc = 1
  complete(id, kind, fields)
  return { 'stored' }
end
if episode.kind ~= kind or (episode.group ~= group and not episode.adhoc) then
  return { 'mismatch', episode.kind, episode.group }
end
if episode.state == 'final' then
  local same = episode.final_attempt == attempt
  if not episode.adhoc then
    redis.call('HINCRBY', K.counts(kind), same and 'duplicates_refused' or 'superseded', 1)
    if not same then
      note_example('superseded', id .. '#' .. attempt)
    end
  end
  if not same then
    close_session(ARGV[16], 'superseded')
  end
  return { same and 'duplicate' or 'superseded' }
end

if retryable then
  local holds = episode.state == 'leased' and (lease == episode.lease or (lease == '' and attempt == episode.attempt))
  if not holds then
    close_session(ARGV[16], 'retried')
    return { 'retry' } -- it was counted when the attempt lost its lease
  end
  keep_body()
  if not fail_attempt(id, ARGV[7], ARGV[8], retry_from(11)) then
    redis.call('HDEL', key, 'head', 'final_attempt', 'bytes')
    redis.call('DEL', K.messages(id))
    close_session(ARGV[16], 'retried')
    return { 'retry' }
  end
  keep_tokens()
else
  keep_body()
  keep_tokens()
  if episode.state == 'leased' then
    end_lease(id)
  end
  leave_queue(id, kind)
  finish(id, tonumber(ARGV[14]), ARGV[21], fields)
end
return { 'stored' }
