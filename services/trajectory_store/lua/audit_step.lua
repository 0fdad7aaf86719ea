-- ARGV: audit id, what is read ('episodes', 'groups', 'adhoc', 'changes', or a structure: 'queue', 'delayed', 'leases', 'completed'), kind,
-- cursor, how many at about once.
-- Returns {} where the audit is over, else {next cursor, episodes, groups, totals}. Of a structure only ids that nothing else knows are named.
-- totals are there once no change is left to read: at that moment all that was read is true at once.
if redis.call('GET', K.audit) ~= ARGV[1] then
  return {}
end
redis.call('EXPIRE', K.audit, AUDIT_TTL_S)
local what, kind, cursor, count = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local episodes, groups = {}, {}

-- Where an episode is found, one letter a structure.
local function places_of(id, of, lease)
  local found = ''
  if redis.call('ZSCORE', K.queue(of), id) then
    found = found .. 'q'
  end
  if redis.call('ZSCORE', K.delayed(of), id) then
    found = found .. 'd'
  end
  if lease and redis.call('HGET', K.lease_episode, lease) == id and redis.call('ZSCORE', K.leases(of), lease) then
    found = found .. 'l'
  end
  if redis.call('ZSCORE', K.completed, id) then
    found = found .. 'c'
  end
  if redis.call('SISMEMBER', K.episodes(of), id) == 1 then
    found = found .. 'e'
  end
  return found
end

local function note_episode(id, of)
  local episode = get(K.episode(id), 'state', 'group', 'consumed', 'reason', 'kind', 'lease', 'adhoc')
  of = episode.kind or of
  local places = places_of(id, of, episode.lease)
  if redis.call('SISMEMBER', K.adhoc, id) == 1 then
    places = places .. 'a'
  end
  local facts = { id, of, episode.state or '', episode.group or '', episode.consumed or '', episode.reason or '', places }
  episodes[#episodes + 1] = facts
end

local function note_group(id)
  local group = get(K.group(id), 'kind', 'state', 'size', 'finals', 'deliver')
  local ready = group.kind and redis.call('ZSCORE', K.ready(group.kind), id) and '1' or '0'
  groups[#groups + 1] = { id, group.kind or '', group.state or '', group.size or '0', group.finals or '0', group.deliver or '0', ready }
end

-- The record of an episode that was removed says no kind; a set that still names it does.
local function kind_of(id)
  for _, each in ipairs(KINDS) do
    if redis.call('SISMEMBER', K.episodes(each), id) == 1 then
      return each
    end
  end
  return ''
end

local function read_changes()
  local begins = K.episode('')
  for _, key in ipairs(redis.call('SPOP', K.touched, count)) do
    if string.sub(key, 1, #begins) == begins then
      local id = string.sub(key, #begins + 1)
      note_episode(id, kind_of(id))
    else
      note_group(string.sub(key, #K.group('') + 1))
    end
  end
end

local function totals()
  local reply = {}
  for _, each in ipairs(KINDS) do
    reply[#reply + 1] = {
      each,
      redis.call('ZCARD', K.queue(each)),
      redis.call('ZCARD', K.delayed(each)),
      redis.call('ZCARD', K.leases(each)),
      redis.call('HGETALL', K.counts(each)),
      redis.call('HGETALL', K.drops(each)),
      redis.call('HGETALL', K.retired_counts(each)),
    }
  end
  reply[#reply + 1] = redis.call('ZCARD', K.completed)
  return reply
end

local function scan(command, key)
  local answer = redis.call(command, key, cursor, 'COUNT', count)
  cursor = answer[1]
  return answer[2]
end

local function read_structure(key)
  local members = scan('ZSCAN', key)
  for i = 1, #members, 2 do
    local id = members[i]
    if what == 'leases' then
      id = redis.call('HGET', K.lease_episode, id) or ''
    end
    if kind_of(id) == '' and redis.call('SISMEMBER', K.adhoc, id) == 0 then
      episodes[#episodes + 1] = { id }
    end
  end
end

if what == 'changes' then
  read_changes()
  if redis.call('SCARD', K.touched) == 0 then
    return { '0', episodes, groups, totals() }
  end
elseif what == 'groups' then
  for _, id in ipairs(scan('SSCAN', K.groups(kind))) do
    note_group(id)
  end
elseif what == 'episodes' or what == 'adhoc' then
  for _, id in ipairs(scan('SSCAN', what == 'adhoc' and K.adhoc or K.episodes(kind))) do
    note_episode(id, kind)
  end
else
  read_structure(what == 'completed' and K.completed or K[what](kind))
end
return { cursor, episodes, groups, {} }
