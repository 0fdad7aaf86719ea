-- ARGV: cursor, limit. Returns {cursor of the first record, records}: records that were capped away are counted by the cursor and not there.
local gone = tonumber(redis.call('HGET', K.sequence, 'metrics_gone') or 0)
local first = math.max(tonumber(ARGV[1]) - gone, 0)
return { gone + first, redis.call('LRANGE', K.metrics, first, first + tonumber(ARGV[2]) - 1) }
