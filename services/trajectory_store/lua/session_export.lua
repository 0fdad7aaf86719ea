-- ARGV: session id, how long it is kept from now on. Says that its calls were handed out and no trajectory will name it.
-- One that a trajectory names already stays as it is.
if close_session(ARGV[1], 'exported') then
  redis.call('ZADD', K.unclaimed, seconds(now() + tonumber(ARGV[2])), ARGV[1])
end
return 1
