-- ARGV: batch id. Returns {state or '', kind, expires_at, {group id, bytes, episode id, …}, …}: what a leased batch hands out.
local batch = get(K.batch(ARGV[1]), 'state', 'kind', 'sizes')
local rows = { batch.state or '', batch.kind or '', redis.call('ZSCORE', K.batch_leases(batch.kind or ''), ARGV[1]) or '0' }
if batch.state ~= 'leased' then
  return rows
end
local sizes = cjson.decode(batch.sizes)
for index, group in ipairs(group_ids(ARGV[1])) do
  local row = deliverable(group)
  table.insert(row, 1, string.format('%d', sizes[index]))
  table.insert(row, 1, group)
  rows[#rows + 1] = row
end
return rows
