-- ARGV: grants at the start of the trial. Lets one more session begin. Returns how many may begin now.
redis.call('SET', K.grants, ARGV[1], 'NX')
return redis.call('INCR', K.grants)
