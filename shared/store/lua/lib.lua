-- The pieces that every script shares. It is put before each script; @…@ is filled in once, at load.
-- Names: see shared/names.py. All times are milliseconds by Redis' own clock, so that no host's clock matters.

local P = 'clinvk:'
local LEASE_MS = @LEASE_MS@
local RETENTION_MS = @RETENTION_MS@
local MAX_EVENTS = @MAX_EVENTS@
local TEMPLATE = [==[@TEMPLATE@]==]

local function int(n) return string.format('%.0f', n) end

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function final(status)
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end

-- Every follower's process gets a copy: "<run> <first sequence> <count>\n<event>\n<event>…". With `mail` (process ->
-- list of copies) it waits there for `deliver`.
local function publish(id, first, events, mail)
  local copy
  for _, api in ipairs(redis.call('SMEMBERS', P .. 'followers:' .. id)) do
    copy = copy or (id .. ' ' .. int(first) .. ' ' .. #events .. '\n' .. table.concat(events, '\n'))
    if not mail then
      redis.call('PUBLISH', P .. 'live:' .. api, copy)
    elseif mail[api] then
      table.insert(mail[api], copy)
    else
      mail[api] = { copy }
    end
  end
end

local function deliver(mail)
  for api, copies in pairs(mail) do redis.call('PUBLISH', P .. 'live:' .. api, table.concat(copies, '\n')) end
end

-- Appends ARGV[at .. at+count-1] as sequences first.. to a run whose last is `seq`; what is there already is passed
-- over, so that a flush whose answer was lost may be sent again.
local function append(id, seq, first, at, count, mail)
  local new = {}
  for i = 0, count - 1 do
    local n = first + i
    if n > seq then
      redis.call('XADD', P .. 'events:' .. id, 'MAXLEN', '~', MAX_EVENTS, '0-' .. int(n), 'e', ARGV[at + i])
      new[#new + 1] = ARGV[at + i]
    end
  end
  if #new > 0 then
    redis.call('HSET', P .. 'run:' .. id, 'seq', int(first + count - 1))
    publish(id, first + count - #new, new, mail)
  end
end

-- The hint: a Celery message that says no more than "this run may be claimed".
local function hint(id, queue, now)
  local run = P .. 'run:' .. id
  local tag = id .. '-' .. redis.call('HINCRBY', run, 'hints', 1)
  local message = string.gsub(TEMPLATE, '@(%u+)@', { RUN = id, QUEUE = queue, TAG = tag })
  redis.call('LPUSH', queue, message)
  redis.call('ZADD', P .. 'queued', int(now), id)
end

-- Fills the window of a queue from the lines of its tenants, one run a turn.
local function release(queue, now)
  local room = tonumber(redis.call('GET', P .. 'room:' .. queue) or '0')
  local held = redis.call('SCARD', P .. 'held:queue:' .. queue)
  local turns = P .. 'turns:' .. queue
  local skip = 0
  while held < room do
    local tenant = redis.call('ZRANGE', turns, skip, skip)[1]
    if not tenant then return end
    local limit = tonumber(redis.call('HGET', P .. 'limits', tenant) or 'inf') or math.huge
    if redis.call('SCARD', P .. 'held:tenant:' .. tenant) >= limit then
      skip = skip + 1
    else
      local line = P .. 'line:' .. queue .. '|' .. tenant
      local id = redis.call('ZPOPMIN', line)[1]
      if redis.call('ZCARD', line) == 0 then
        redis.call('ZREM', turns, tenant)
        redis.call('SREM', P .. 'lines:' .. tenant, queue)
      else
        redis.call('ZADD', turns, redis.call('INCR', P .. 'turn'), tenant)
      end
      redis.call('ZREM', P .. 'waiting', id)
      redis.call('SADD', P .. 'held:queue:' .. queue, id)
      redis.call('SADD', P .. 'held:tenant:' .. tenant, id)
      redis.call('HSET', P .. 'run:' .. id, 'status', 'queued', 'queued', int(now))
      hint(id, queue, now)
      held = held + 1
    end
  end
end

local function stand_in_line(id, queue, tenant, priority, now)
  local place = redis.call('INCR', P .. 'turn')
  if priority == 'batch' then place = place + 1e15 end
  redis.call('ZADD', P .. 'waiting', int(now), id)
  redis.call('ZADD', P .. 'line:' .. queue .. '|' .. tenant, int(place), id)
  redis.call('ZADD', P .. 'turns:' .. queue, 'NX', redis.call('INCR', P .. 'turn'), tenant)
  redis.call('SADD', P .. 'lines:' .. tenant, queue)
end

-- Takes a run out of every line and window that it stands in, and lets the next ones in.
local function leave(id, queue, tenant, status, now)
  redis.call('ZREM', P .. 'waiting', id)
  redis.call('ZREM', P .. 'queued', id)
  redis.call('ZREM', P .. 'running', id)
  if status == 'waiting' then
    local line = P .. 'line:' .. queue .. '|' .. tenant
    redis.call('ZREM', line, id)
    if redis.call('ZCARD', line) == 0 then
      redis.call('ZREM', P .. 'turns:' .. queue, tenant)
      redis.call('SREM', P .. 'lines:' .. tenant, queue)
    end
    return
  end
  redis.call('SREM', P .. 'held:queue:' .. queue, id)
  redis.call('SREM', P .. 'held:tenant:' .. tenant, id)
  release(queue, now)
  for _, other in ipairs(redis.call('SMEMBERS', P .. 'lines:' .. tenant)) do
    if other ~= queue then release(other, now) end
  end
end

-- The one way in which a run ends. `event` is its last; its sequence is filled in here.
local function finish(id, status, outcome, event, now)
  local run = P .. 'run:' .. id
  local was = redis.call('HMGET', run, 'status', 'queue', 'tenant')
  local seq = redis.call('HINCRBY', run, 'seq', 1)
  event = string.gsub(event, '"sequence":0,', '"sequence":' .. seq .. ',', 1)
  redis.call('XADD', P .. 'events:' .. id, 'MAXLEN', '~', MAX_EVENTS, '0-' .. seq, 'e', event)
  redis.call('HSET', run, 'status', status, 'ended', int(now), 'outcome', outcome)
  redis.call('HDEL', run, 'cancel')
  redis.call('PEXPIRE', run, RETENTION_MS)
  redis.call('PEXPIRE', P .. 'events:' .. id, RETENTION_MS)
  redis.call('ZREM', P .. 'unfollowed', id)
  redis.call('ZREM', P .. 'impatient', id)
  publish(id, seq, { event })
  for _, api in ipairs(redis.call('SMEMBERS', P .. 'followers:' .. id)) do
    redis.call('SREM', P .. 'api:' .. api .. ':runs', id)
  end
  redis.call('DEL', P .. 'followers:' .. id)
  leave(id, was[2], was[3], was[1], now)
end

-- running -> waiting, for a caller who allowed it; the run keeps its events and goes to the end of its line.
local function again(id, now)
  local run = P .. 'run:' .. id
  local was = redis.call('HMGET', run, 'queue', 'tenant', 'priority')
  redis.call('HINCRBY', run, 'retry', -1)
  redis.call('HSET', run, 'status', 'waiting')
  redis.call('HDEL', run, 'token', 'host', 'instance', 'started')
  leave(id, was[1], was[2], 'running', now)
  stand_in_line(id, was[1], was[2], was[3], now)
  release(was[1], now)
end

-- What the live instances carry together, and a little more, so that a freed slot finds its next run at hand.
local function measure(queue, now)
  local slots = P .. 'slots:' .. queue
  local all = redis.call('HGETALL', slots)
  local sum = 0
  for i = 1, #all, 2 do
    local alive = tonumber(redis.call('ZSCORE', P .. 'instances', all[i]) or '0')
    if alive < now then redis.call('HDEL', slots, all[i]) else sum = sum + tonumber(all[i + 1]) end
  end
  if sum == 0 and redis.call('EXISTS', slots) == 0 then  -- nobody has anything to do with it any more
    redis.call('SREM', P .. 'queues', queue)
    redis.call('DEL', P .. 'room:' .. queue)
    return
  end
  if sum > 0 then sum = sum + math.max(1, math.floor(sum / 4)) end
  redis.call('SET', P .. 'room:' .. queue, int(sum))
  release(queue, now)
end
