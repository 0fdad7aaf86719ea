-- ARGV: key, digest, content, whether it is kept in any case (0/1). Returns the digest of the prefix that prompts of this key use, nil where
-- there are enough prefixes. What was registered first stays in use.
local known = redis.call('HGET', K.prefix_names, ARGV[1])
if not known and redis.call('HLEN', K.prefix_names) < PREFIXES_KEPT then
  redis.call('HSET', K.prefix_names, ARGV[1], ARGV[2])
  known = ARGV[2]
end
if known == ARGV[2] or ARGV[4] == '1' then
  redis.call('HSETNX', K.prefixes, ARGV[2], ARGV[3])
end
return known
