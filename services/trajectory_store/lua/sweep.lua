-- ARGV: max_attempts, retry_delay_s. Returns {queued, final}.
local queued, final = sweep(tonumber(ARGV[1]), tonumber(ARGV[2]))
return { queued, final }
