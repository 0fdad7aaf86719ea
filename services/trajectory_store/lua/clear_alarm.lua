-- ARGV: name of the alarm. Returns 1 where it was raised.
for _, kind in ipairs(KINDS) do
  redis.call('HSET', K.counts(kind), 'barren', 0)
end
local raised = redis.call('HDEL', K.alarms, ARGV[1])
if raised == 1 then
  emit('alarm_cleared', { name = ARGV[1] })
end
return raised
