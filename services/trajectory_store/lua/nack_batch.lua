-- ARGV: batch id. Returns the state the batch was in, '' where it is unknown. Only a leased batch is given back.
local state = redis.call('HGET', K.batch(ARGV[1]), 'state') or ''
if state == 'leased' then
  give_back(ARGV[1], 'nacked')
end
return state
