-- ARGV: batch id, ttl_s. Returns the state of the batch, '' where it is unknown. Only a leased batch is extended.
local batch = get(K.batch(ARGV[1]), 'state', 'kind')
if batch.state == 'leased' then
  redis.call('ZADD', K.batch_leases(batch.kind), seconds(now() + tonumber(ARGV[2])), ARGV[1])
end
return batch.state or ''
