-- ARGV: record as JSON. A record equal to the last one is a repeat of a request whose answer was lost.
if redis.call('LINDEX', K.metrics, -1) ~= ARGV[1] then
  local over = redis.call('RPUSH', K.metrics, ARGV[1]) - METRICS_KEPT
  if over > 0 then
    redis.call('LTRIM', K.metrics, over, -1)
    redis.call('HINCRBY', K.sequence, 'metrics_gone', over)
  end
end
return redis.call('LLEN', K.metrics)
