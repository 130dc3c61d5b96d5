-- Lines, windows and hints: when a run may be queued.

-- The hint: a Celery message that says no more than "this run may be claimed".
local function message(id, queue, number)
  return (string.gsub(TEMPLATE, '@(%u+)@', { RUN = id, QUEUE = queue, TAG = id .. '-' .. number }))
end

local function hint(id, queue, now)
  redis.call('LPUSH', queue, message(id, queue, redis.call('HINCRBY', P .. 'run:' .. id, 'hints', 1)))
  redis.call('ZADD', P .. 'queued', int(now), id)
end

-- Runs that must go to one host are counted until they start: for whoever places others, and for the sweep, which looks
-- after those that no host takes.
local function bind(queue, by)
  if string.find(queue, '@', 1, true) and redis.call('HINCRBY', P .. 'bound', queue, by) <= 0 then
    redis.call('HDEL', P .. 'bound', queue)
  end
end

-- One run fewer waits. How fast they go tells those who find no place when to come again.
local function left() redis.call('INCR', P .. 'left') end

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
      left()
      if record(id, 'status')[1] == 'waiting' then  -- else somebody has taken its record away, or spoilt it
        redis.call('SADD', P .. 'held:queue:' .. queue, id)
        redis.call('SADD', P .. 'held:tenant:' .. tenant, id)
        redis.call('HSET', P .. 'run:' .. id, 'status', 'queued', 'queued', int(now))
        hint(id, queue, now)
        held = held + 1
      end
    end
  end
end

-- `place`: where it stands in its tenant's line; the last by default.
local function stand_in_line(id, queue, tenant, priority, now, place)
  if not place then
    place = redis.call('INCR', P .. 'turn')
    if priority == 'batch' then place = place + 1e15 end
  end
  bind(queue, 1)
  redis.call('ZADD', P .. 'waiting', int(now), id)
  redis.call('ZADD', P .. 'line:' .. queue .. '|' .. tenant, int(place), id)
  redis.call('ZADD', P .. 'turns:' .. queue, 'NX', redis.call('INCR', P .. 'turn'), tenant)
  redis.call('SADD', P .. 'lines:' .. tenant, queue)
end

-- Whether so many more runs of a tenant may not wait: nil, or {'full', how many do, the most, 'tenant' where its own
-- share is meant, ms until there is likely to be room, or ''}.
local function full(tenant, need, most, share)
  local depth = redis.call('ZCARD', P .. 'waiting')
  if depth + need <= math.min(most, share) then return nil end
  local limit, whose, turns = most, '', 1
  if depth + need <= most then
    depth, limit, whose = 0, share, 'tenant'
    for _, queue in ipairs(redis.call('SMEMBERS', P .. 'lines:' .. tenant)) do
      depth = depth + redis.call('ZCARD', P .. 'line:' .. queue .. '|' .. tenant)
      turns = math.max(turns, redis.call('ZCARD', P .. 'turns:' .. queue))
    end
    if depth + need <= share then return nil end
  end
  local pace, wait = tonumber(redis.call('HGET', P .. 'pace', 'per_s') or ''), ''
  if pace then wait = int(math.min((depth + need - limit) * turns / math.max(pace, 0.0001), 86400) * 1000) end
  return { 'full', depth, limit, whose, wait }
end

-- A group (a flow, a session) has a line and a window of its own: its runs stand in the tenants' lines only within it.
-- Where it has a host, they go there.
local function advance(group, now)
  local g = redis.call('HMGET', P .. 'group:' .. group, 'window', 'stop', 'host')
  if not g[1] or g[2] then return end
  local held = P .. 'held:group:' .. group
  while redis.call('SCARD', held) < tonumber(g[1]) do
    local id = redis.call('LPOP', P .. 'line:group:' .. group)
    if not id then return end
    local was = record(id, 'status', 'queue', 'tenant', 'priority')
    if was[1] == 'waiting' and was[2] and was[3] then
      local queue = was[2]
      if g[3] then  -- whatever its labels: what it needs is there
        queue = string.match(queue, '^[^@]+') .. '@' .. g[3]
        redis.call('HSET', P .. 'run:' .. id, 'queue', queue)
      end
      redis.call('ZREM', P .. 'grouped', id)
      redis.call('SADD', held, id)
      stand_in_line(id, queue, was[3], was[4], now)
      release(queue, now)
    end
  end
end

-- Takes a run out of every line and window that it stands in, and lets the next ones in.
local function leave(id, queue, tenant, status, now)
  redis.call('ZREM', P .. 'waiting', id)
  redis.call('ZREM', P .. 'grouped', id)
  redis.call('ZREM', P .. 'queued', id)
  redis.call('ZREM', P .. 'running', id)
  if status == 'waiting' then
    local line = P .. 'line:' .. queue .. '|' .. tenant
    if redis.call('ZREM', line, id) == 1 then
      left()
      bind(queue, -1)
    end
    if redis.call('ZCARD', line) == 0 then
      redis.call('ZREM', P .. 'turns:' .. queue, tenant)
      redis.call('SREM', P .. 'lines:' .. tenant, queue)
    end
    return
  end
  if status == 'queued' then bind(queue, -1) end
  redis.call('SREM', P .. 'held:queue:' .. queue, id)
  redis.call('SREM', P .. 'held:tenant:' .. tenant, id)
  release(queue, now)
  for _, other in ipairs(redis.call('SMEMBERS', P .. 'lines:' .. tenant)) do
    if other ~= queue then release(other, now) end
  end
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
