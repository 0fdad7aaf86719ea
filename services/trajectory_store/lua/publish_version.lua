-- ARGV: version, path, step, published_at ('0' for now). Returns {path, step, published_at} as stored first.
local key = K.policy_version(ARGV[1])
if redis.call('EXISTS', key) == 0 then
  local at = tonumber(ARGV[4]) > 0 and ARGV[4] or seconds(now())
  redis.call('HSET', key, 'path', ARGV[2], 'step', ARGV[3], 'published_at', at)
  redis.call('ZADD', K.policy_versions, ARGV[1], ARGV[1])
  emit('policy_version', { version = tonumber(ARGV[1]), path = ARGV[2] })
end
return redis.call('HMGET', key, 'path', 'step', 'published_at')
