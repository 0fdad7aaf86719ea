-- ARGV: lease id, reason, count_attempt (0/1), max_attempts, retry delay, longest delay.
-- Returns 'unknown', 'queued', 'retry' or 'final'. An attempt that does not count goes back to its place in the queue at once,
-- unless its group was delivered meanwhile.
local id = redis.call('HGET', K.lease_episode, ARGV[1])
if not id then
  return 'unknown'
end
local group = redis.call('HGET', K.episode(id), 'group')
if ARGV[3] == '0' and redis.call('HGET', K.group(group), 'state') == 'open' then
  end_lease(id)
  enqueue_again(id)
  return 'queued'
end
return fail_attempt(id, 'infra', ARGV[2], retry_from(4)) and 'final' or 'retry'
