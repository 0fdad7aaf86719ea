-- ARGV: lease id, reason, count_attempt (0/1), max_attempts, retry_delay_s.
-- Returns 'unknown', 'queued', 'retry' or 'final'. An attempt that does not count goes back to its place in the queue at once.
local id = redis.call('HGET', K.lease_episode, ARGV[1])
if not id then
  return 'unknown'
end
if ARGV[3] == '0' then
  end_lease(id)
  enqueue_again(id)
  return 'queued'
end
return fail_attempt(id, 'infra', ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])) and 'final' or 'retry'
