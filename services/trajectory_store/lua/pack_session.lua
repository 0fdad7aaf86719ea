-- ARGV: session id, entry of the list, episode id, number of calls that were packed ('' to only take the entry off the list), token tree,
-- bytes, spilled file or '', prefix that the tree needs or ''. Returns -1 where Redis does not have that prefix.
-- Replaces the call records of a sealed session by its packed tree. The names of the calls stay, so that a repeated record is still known.
local key = K.session(ARGV[1])
if ARGV[8] ~= '' and redis.call('HEXISTS', K.prefixes, ARGV[8]) == 0 then
  return -1
end
if ARGV[4] ~= '' and redis.call('HEXISTS', key, 'sealed') == 1 and redis.call('HEXISTS', key, 'tree') == 0 then
  local calls = {}
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, 2) == 'c:' then
      calls[#calls + 1] = name
    end
  end
  if #calls == tonumber(ARGV[4]) then
    redis.call('HSET', key, 'tree', ARGV[5])
    for _, name in ipairs(calls) do
      redis.call('HSET', key, name, '')
    end
    redis.call('HINCRBY', K.episode(ARGV[3]), 'bytes', ARGV[6])
    redis.call('HINCRBY', K.totals, 'bytes', ARGV[6])
    if ARGV[7] ~= '' then
      local files = cjson.decode(redis.call('HGET', K.episode(ARGV[3]), 'spilled') or '[]')
      files[#files + 1] = ARGV[7]
      redis.call('HSET', K.episode(ARGV[3]), 'spilled', cjson.encode(files))
    end
  end
end
return redis.call('LREM', K.unpacked, 1, ARGV[2])
