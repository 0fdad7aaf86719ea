-- ARGV: audit id. Returns 1 where this audit was the one that ran.
if redis.call('GET', K.audit) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', K.audit, K.touched)
