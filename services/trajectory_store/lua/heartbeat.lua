-- ARGV: worker id, ttl_s, lease ids. Returns the leases that are not the worker's.
-- A lease whose time is over but that nobody swept yet is renewed: nothing happened to the episode in between.
local expires, lost = now() + tonumber(ARGV[2]), {}
for i = 3, #ARGV do
  local id = redis.call('HGET', K.lease_episode, ARGV[i])
  local episode = id and get(K.episode(id), 'worker', 'kind') or {}
  if episode.worker == ARGV[1] then
    redis.call('ZADD', K.leases(episode.kind), seconds(expires), ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
