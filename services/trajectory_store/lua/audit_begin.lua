-- ARGV: audit id. Returns 1, or 0 while another audit runs.
-- From now on every edge notes what it touches, so that the audit can read record by record and then again what changed meanwhile.
if not redis.call('SET', K.audit, ARGV[1], 'NX', 'EX', AUDIT_TTL_S) then
  return 0
end
redis.call('DEL', K.touched)
return 1
