-- How a run comes, ends, begins again and is erased.

-- Whose line and window a run stands in: its tenant's, or its key's where that has a window of its own. And that window.
local function holder(tenant, about)
  local key, window = string.match(about or '', '^([^\n]*)\n(%d*)\n')
  if window and window ~= '' then return key, window end
  return tenant, ''
end

-- A new run, in line: its group's, if it has one. `about` is the API key's id, the size of the key's own window ('' for
-- none) and the model asked for, a line each. A key with a window stands in the lines and windows of tenants as one more
-- tenant does: that is the field `tenant`; whose the run is, where that is another, is the field `owner`.
local function create(id, tenant, queue, spec, priority, retry, now, group, lane, about)
  local run = P .. 'run:' .. id
  redis.call('HSET', run, 'spec', spec, 'tenant', tenant, 'queue', queue, 'status', 'waiting', 'created', int(now),
    'priority', priority, 'retry', retry, 'seq', 0, 'attempt', 0, 'about', about)
  redis.call('ZADD', P .. 'tenants', int(now), tenant)
  redis.call('ZADD', P .. 'runs:' .. tenant, int(now), id)
  redis.call('ZREMRANGEBYSCORE', P .. 'runs:' .. tenant, 0, int(now - RETENTION_MS - LONGEST_RUN_MS))
  redis.call('PEXPIRE', P .. 'runs:' .. tenant, int(RETENTION_MS + LONGEST_RUN_MS))
  local own, window = holder(tenant, about)
  if window ~= '' then
    redis.call('HSET', P .. 'limits', own, window)
    redis.call('HSET', run, 'tenant', own, 'owner', tenant)
    tenant = own
  elseif string.sub(about, 1, #tenant + 1) == tenant .. '\n' then  -- its window has been taken away
    redis.call('HDEL', P .. 'limits', tenant)
  end
  if group == '' then
    stand_in_line(id, queue, tenant, priority, now)
    release(queue, now)
  else
    redis.call('HSET', run, 'group', group, 'lane', lane)
    redis.call('ZADD', P .. 'grouped', int(now), id)
    redis.call('RPUSH', P .. 'line:group:' .. group, id)
    advance(group, now)
  end
end

-- The one way in which a run ends. `event` is its last; its sequence is filled in here. A flow whose run has ended is
-- due to be carried on; who ends a run does so, and the sweep where that one died.
local function finish(id, status, outcome, event, now)
  local run = P .. 'run:' .. id
  local was = redis.call('HMGET', run, 'status', 'queue', 'tenant', 'group', 'lane', 'created', 'started', 'owner', 'about')
  local group = was[4]
  count(was[2], status, outcome, was[6], was[7], now)
  charge(was[8] or was[3], was[9], was[2], status, outcome, was[7], now)
  local seq = redis.call('HINCRBY', run, 'seq', 1)
  event = string.gsub(event, '"sequence":0,', '"sequence":' .. seq .. ',', 1)
  close_log(id, seq, status, outcome, event, now, MAX_EVENTS)
  if is_flow(group) then
    mirror(id, group, was[5], { event })
    -- Its flow may need it for longer than an ended run is kept; the flow's end sets its time.
    redis.call('PERSIST', run)
    redis.call('PERSIST', P .. 'events:' .. id)
    redis.call('HINCRBY', P .. 'run:' .. group, 'ends', 1)
    local fast = redis.call('HGET', P .. 'group:' .. group, 'fast')
    if fast and status ~= 'succeeded' then redis.call('HSETNX', P .. 'group:' .. group, 'stop', fast) end
    redis.call('ZADD', P .. 'due', int(now), group)
  end
  leave(id, was[2], was[3], was[1], now)
  if group then
    redis.call('SREM', P .. 'held:group:' .. group, id)
    redis.call('LREM', P .. 'line:group:' .. group, 1, id)
    if not is_flow(group) then close_turn(id, group, status, outcome, now) end
    advance(group, now)
  end
end

-- running -> waiting, for a caller who allowed it; the run keeps its events and goes to the end of its line.
local function again(id, now)
  local run = P .. 'run:' .. id
  local was = redis.call('HMGET', run, 'queue', 'tenant', 'priority', 'group')
  if was[4] then begin_anew(was[4]) end
  redis.call('HINCRBY', run, 'retry', -1)
  redis.call('HSET', run, 'status', 'waiting')
  redis.call('HDEL', run, 'token', 'host', 'instance', 'started')
  leave(id, was[1], was[2], 'running', now)
  stand_in_line(id, was[1], was[2], was[3], now)
  release(was[1], now)
end

-- Nothing is left of an ended run: its record with prompt and answer, its events, what joins requests to it.
local function erase(id)
  local run = P .. 'run:' .. id
  local was = redis.call('HMGET', run, 'tenant', 'owner', 'same')
  if was[3] then
    local same = P .. 'same:' .. was[3]
    if redis.call('TYPE', same).ok == 'list' then
      redis.call('LREM', same, 0, id)
    elseif redis.call('HGET', same, 'run') == id then
      redis.call('DEL', same)
    end
  end
  redis.call('DEL', run, P .. 'events:' .. id, P .. 'followers:' .. id)
  redis.call('ZREM', P .. 'unfollowed', id)
  if was[1] then redis.call('ZREM', P .. 'runs:' .. (was[2] or was[1]), id) end
end
