-- Forgets sessions that were idle for their ttl and that no trajectory names, and counts why none does. Returns {session id, reason, calls, …}.
local swept = {}

local function reason_of(key, session)
  local calls, begun = 0, 0
  for _, name in ipairs(redis.call('HKEYS', key)) do
    local kind = string.sub(name, 1, 2)
    calls, begun = calls + (kind == 'c:' and 1 or 0), begun + (kind == 'i:' and 1 or 0)
  end
  if session.closed then
    return session.closed, calls
  elseif calls + begun == 0 then
    return 'unused', 0
  elseif not session.sealed then
    return 'unsealed', calls
  end
  return begun > 0 and 'incomplete' or 'unclaimed', calls
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.unclaimed, '-inf', seconds(now()), 'LIMIT', 0, SWEEP_LIMIT)) do
  local key = K.session(id)
  local session = get(key, 'touched', 'ttl', 'sealed', 'closed')
  local due = tonumber(session.touched or 0) + tonumber(session.ttl or 0)
  if session.touched and not session.closed and due > now() then
    redis.call('ZADD', K.unclaimed, seconds(due), id)
  else
    redis.call('ZREM', K.unclaimed, id)
    if session.touched then
      local reason, calls = reason_of(key, session)
      forget_key(id)
      redis.call('DEL', key)
      redis.call('HINCRBY', K.swept, reason, 1)
      note_example('session_' .. reason, id)
      emit('session_swept', { session_id = id, reason = reason, calls = calls })
      swept[#swept + 1] = id
      swept[#swept + 1] = reason
      swept[#swept + 1] = calls
    end
  end
end
return swept
