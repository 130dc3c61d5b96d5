-- id, tenant, queue, spec, api ('' for detached), priority, retry, max_depth, patience_ms (0 for none),
-- same ('' or the name of what makes two requests one), kind (key | body), print, try, joinable codes (',a,b,'),
-- session ('' for none), session as JSON ('' for one that is there), whether it must be free (0 | 1), max_depth_per_tenant,
-- what `create` takes as `about`
-- -> {status, id} | {'none'} (no queue was given, and there is nothing to join) | {'full', …} (see `full`) | {'differs'} | {'busy'} | {'gone'} ; another id: that run was joined
-- Record, follower, place in line and, where there is room, the Celery message: one step. Safe to repeat.
local id, tenant, queue, spec, api, priority, retry = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local same, kind, print, try = ARGV[10], ARGV[11], ARGV[12], tonumber(ARGV[13])
local run = P .. 'run:' .. id
local status = redis.call('HGET', run, 'status')
if status then return { status, id } end

-- A run that failed in a way that a new try may mend, or that was ended since its caller had gone, is not joined.
local function joinable(other)
  local was = redis.call('HMGET', P .. 'run:' .. other, 'status', 'outcome', 'cancel')
  if not was[1] or was[3] then return false end
  if was[1] == 'succeeded' or not final(was[1]) then return was[1] end
  local code = string.match(was[2], '"failure":{"code":"([%w_]+)"') or ''
  local cause = string.match(was[2], '"cause":"([%w_]+)"') or ''
  if cause == 'hung_up' or cause == 'uncertain' or string.find(ARGV[14], ',' .. code .. ',', 1, true) then
    return false
  end
  return was[1]
end

local function join(other, stands)
  if not final(stands) then attach(other, api) end
  return { stands, other }
end

if same ~= '' and kind == 'key' then
  local first = redis.call('HMGET', P .. 'same:' .. same, 'run', 'print')
  if first[1] then
    if first[2] ~= print then return { 'differs' } end
    local stands = joinable(first[1])
    if stands then return join(first[1], stands) end
  end
elseif same ~= '' and try > 0 then
  for _, other in ipairs(redis.call('LRANGE', P .. 'same:' .. same, 0, -1)) do
    local stands = joinable(other)
    local was = redis.call('HMGET', P .. 'run:' .. other, 'try', 'joiner', 'unseen')
    if stands and was[2] == id then return join(other, stands) end  -- the answer to the same question was lost
    -- Each try of a caller joins a run once; one that somebody follows, or has followed to its end, is another caller's.
    if stands and (not final(stands) or was[3]) and redis.call('SCARD', P .. 'followers:' .. other) == 0
      and tonumber(was[1] or '0') < try then
      redis.call('HSET', P .. 'run:' .. other, 'try', try, 'joiner', id)
      redis.call('HDEL', P .. 'run:' .. other, 'unseen')
      return join(other, stands)
    end
  end
end

if queue == '' then return { 'none' } end
local no_room = full(holder(tenant, ARGV[19]), 1, tonumber(ARGV[8]), tonumber(ARGV[18]))
if no_room then return no_room end
local now = now_ms()
local session = ARGV[15]
if session ~= '' then
  local head = P .. 'session:' .. session
  local stands = redis.call('HMGET', head, 'tenant', 'backend', 'status')
  if ARGV[16] ~= '' then
    if not stands[1] then
      for name, value in pairs(cjson.decode(ARGV[16])) do redis.call('HSET', head, name, value) end
      redis.call('HSET', head, 'tenant', tenant, 'created', int(now), 'turn_count', 0)
      redis.call('HSET', P .. 'group:' .. session, 'window', 1, 'sticky', 1)
      stands = redis.call('HMGET', head, 'tenant', 'backend', 'status')
    end
  elseif not stands[1] then
    return { 'gone' }
  elseif ARGV[17] == '1' and stands[3] == 'active' then
    return { 'busy' }
  end
  redis.call('HSET', head, 'status', 'active', 'last_used', int(now), 'run', id)
  index_session(session, stands[1], stands[2], stands[3] or nil, 'active', now)
end
attach(id, api)
if tonumber(ARGV[9]) > 0 then redis.call('ZADD', P .. 'impatient', int(now + tonumber(ARGV[9])), id) end
if same ~= '' and kind == 'key' then
  redis.call('HSET', P .. 'same:' .. same, 'run', id, 'print', print)
  redis.call('PEXPIRE', P .. 'same:' .. same, 86400000)
elseif same ~= '' then
  if try > 0 then redis.call('HSET', run, 'try', try) end
  redis.call('LPUSH', P .. 'same:' .. same, id)
  redis.call('LTRIM', P .. 'same:' .. same, 0, 19)
  redis.call('PEXPIRE', P .. 'same:' .. same, 3600000)
end
if same ~= '' then redis.call('HSET', run, 'same', same) end
create(id, tenant, queue, spec, priority, retry, now, session, 0, ARGV[19])
return { redis.call('HGET', run, 'status'), id }
