-- ARGV: max_attempts, retry delay, longest delay.
-- Returns {queued, final, beat, enqueued, completed}. The beat only ever grows: one that is not larger than the last one seen says
-- that Redis came back without its latest writes.
local beat = next_number('beat')
local queued, final = sweep(retry_from(1))
local numbers = redis.call('HMGET', K.sequence, 'enqueued', 'completed')
return { queued, final, beat, tonumber(numbers[1] or 0), tonumber(numbers[2] or 0) }
