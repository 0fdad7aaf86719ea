-- ARGV: number of fields, fields of an episode's record, episode ids.
-- Returns per episode {the fields, its messages, its session as a flat hash}: what a batch hands out, in one round trip a group.
local n, reply = tonumber(ARGV[1]), {}
local fields = { unpack(ARGV, 2, 1 + n) }
for i = 2 + n, #ARGV do
  local key = K.episode(ARGV[i])
  local session = redis.call('HGET', key, 'session')
  reply[#reply + 1] = {
    redis.call('HMGET', key, unpack(fields)),
    redis.call('GET', K.messages(ARGV[i])),
    session and redis.call('HGETALL', K.session(session)) or {},
  }
end
return reply
