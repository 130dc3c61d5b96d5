-- The pieces that every script shares. It is put before each script; @…@ is filled in once, at load.
-- Names: see shared/names.py. All times are milliseconds by Redis' own clock, so that no host's clock matters.

local P = 'clinvk:'
local LEASE_MS = @LEASE_MS@
local RETENTION_MS = @RETENTION_MS@
local MAX_EVENTS = @MAX_EVENTS@
local MAX_FLOW_EVENTS = @MAX_FLOW_EVENTS@
local SESSION_MS = @SESSION_MS@
local USAGE_MS = @USAGE_MS@
local USAGE_KINDS = 500  -- of key, backend and model of a tenant on a day; model names are the callers' words
local LONGEST_RUN_MS = 7 * 86400000  -- for the lists of runs; a record lives on in any case
local TEMPLATE = [==[@TEMPLATE@]==]

local function int(n) return string.format('%.0f', n) end

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- An API process follows it from now on.
local function follow(id, api)
  redis.call('SADD', P .. 'followers:' .. id, api)
  redis.call('SADD', P .. 'api:' .. api .. ':runs', id)
  redis.call('ZREM', P .. 'unfollowed', id)
end

-- The same; without a process it needs no follower from now on, and nobody's patience bounds it.
local function attach(id, api)
  if api ~= '' then return follow(id, api) end
  redis.call('HSET', P .. 'run:' .. id, 'detached', 1)
  redis.call('ZREM', P .. 'unfollowed', id)
  redis.call('ZREM', P .. 'impatient', id)
end

-- Whether somebody follows it, or has done so within the last `alone_ms`.
local function followed(id, alone_ms)
  if redis.call('SCARD', P .. 'followers:' .. id) > 0 then return true end
  local since = tonumber(redis.call('ZSCORE', P .. 'unfollowed', id) or '0')
  return now_ms() - since < alone_ms
end

local function final(status)
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end

-- Every follower's process gets a copy: "<run> <first sequence> <count>\n<event>\n<event>…". With `mail` (process ->
-- list of copies) it waits there for `deliver`. Returns the processes.
local function publish(id, first, events, mail)
  local copy
  local apis = redis.call('SMEMBERS', P .. 'followers:' .. id)
  for _, api in ipairs(apis) do
    copy = copy or (id .. ' ' .. int(first) .. ' ' .. #events .. '\n' .. table.concat(events, '\n'))
    if not mail then
      redis.call('PUBLISH', P .. 'live:' .. api, copy)
    elseif mail[api] then
      table.insert(mail[api], copy)
    else
      mail[api] = { copy }
    end
  end
  return apis
end

local function deliver(mail)
  for api, copies in pairs(mail) do redis.call('PUBLISH', P .. 'live:' .. api, table.concat(copies, '\n')) end
end

-- A flow's own stream holds what those of its lanes do, within a bound.
local function flow_events(flow)
  local lanes = tonumber(redis.call('HGET', P .. 'run:' .. flow, 'lanes') or '1')
  return int(math.max(MAX_EVENTS, math.min(MAX_EVENTS * lanes, MAX_FLOW_EVENTS)))
end

-- The stream of a flow holds the events of all its runs, each with its lane, under a sequence of its own.
local function mirror(id, group, lane, events, mail)
  local flow = P .. 'run:' .. group
  local seq = redis.call('HINCRBY', flow, 'seq', #events)
  local most, copies = flow_events(group), {}
  for i, event in ipairs(events) do
    copies[i] = '{"lane":' .. lane .. ',"run_id":"' .. id .. '","event":' .. event .. '}'
    redis.call('XADD', P .. 'events:' .. group, 'MAXLEN', '~', most, '0-' .. int(seq - #events + i), 'e', copies[i])
  end
  publish(group, seq - #events + 1, copies, mail)
end

local function is_flow(group) return group and string.sub(group, 1, 5) == 'flow_' end

-- What operators count, by backend: kept here, so that it is right whatever processes there are. `le` are seconds,
-- as shared/tally.py has them.
local BUCKETS = { 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600 }

local function observe(what, backend, ms)
  local le = '+Inf'
  for _, bucket in ipairs(BUCKETS) do
    if ms <= bucket * 1000 then
      le = tostring(bucket)
      break
    end
  end
  redis.call('HINCRBY', P .. 'totals', what .. '|' .. backend .. '|' .. le, 1)
  redis.call('HINCRBY', P .. 'totals', what .. '_ms|' .. backend, int(math.max(ms, 0)))
end

-- Appends ARGV[at .. at+count-1] as sequences first.. to a run whose last is `seq`; what is there already is passed
-- over, so that a flush whose answer was lost may be sent again. `group` and `lane` are the run's.
local function append(id, group, lane, seq, first, at, count, mail)
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
    if seq == 0 then
      local was = redis.call('HMGET', P .. 'run:' .. id, 'queue', 'created')
      observe('first', string.match(was[1], '^[^@]+'), now_ms() - tonumber(was[2]))
    end
    publish(id, first + count - #new, new, mail)
    if is_flow(group) then
      mirror(id, group, lane, new, mail)
    elseif group then  -- should its worker be lost, the next turn still goes on with the CLI's own session
      for _, event in ipairs(new) do
        local cli_id = string.sub(event, 1, 14) == '{"type":"init"' and string.match(event, '"backend_session_id":"([^"]+)"')
        if cli_id and redis.call('EXISTS', P .. 'session:' .. group) == 1 then
          redis.call('HSET', P .. 'session:' .. group, 'cli_id', cli_id)
        end
      end
    end
  end
end

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
      redis.call('SADD', P .. 'held:queue:' .. queue, id)
      redis.call('SADD', P .. 'held:tenant:' .. tenant, id)
      redis.call('HSET', P .. 'run:' .. id, 'status', 'queued', 'queued', int(now))
      hint(id, queue, now)
      held = held + 1
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
    local was = redis.call('HMGET', P .. 'run:' .. id, 'status', 'queue', 'tenant', 'priority')
    if was[1] == 'waiting' then
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

-- The sessions of a tenant are listed by last use: all, by backend, by status, by both.
local function index_session(id, tenant, backend, before, status, at)
  local all = P .. 'sessions:' .. tenant
  if before and before ~= status then
    redis.call('ZREM', all .. '||' .. before, id)
    redis.call('ZREM', all .. '|' .. backend .. '|' .. before, id)
  end
  for _, name in ipairs({ '', '|' .. backend .. '|', '||' .. status, '|' .. backend .. '|' .. status }) do
    redis.call('ZADD', all .. name, int(at), id)
  end
  redis.call('ZADD', P .. 'sessions', int(at), id)
  redis.call('ZADD', P .. 'sessionids:' .. tenant, 0, id)
end

-- What a run's end means for its session. A run that never began has no turn.
local function close_turn(id, session, status, outcome, now)
  local head = P .. 'session:' .. session
  local was = redis.call('HMGET', head, 'tenant', 'backend', 'status', 'run')
  if not was[1] then return end
  local told = cjson.decode(outcome)
  if type(told.backend_session_id) == 'string' then redis.call('HSET', head, 'cli_id', told.backend_session_id) end
  if type(told.model) == 'string' then redis.call('HSET', head, 'model', told.model) end
  if type(told.usage) == 'table' then
    for _, name in ipairs({ 'input_tokens', 'output_tokens', 'cached_tokens', 'reasoning_tokens' }) do
      redis.call('HINCRBY', head, name, int(tonumber(told.usage[name]) or 0))
    end
  end
  local attempts = tonumber(redis.call('HGET', P .. 'run:' .. id, 'attempt') or '0')
  if attempts > 0 then redis.call('HINCRBY', head, 'turn_count', 1) end
  local stands = 'error'
  if status == 'succeeded' then stands = 'completed' elseif status == 'cancelled' then stands = 'cancelled' end
  -- Another turn that waits keeps it active.
  if redis.call('LLEN', P .. 'line:group:' .. session) + redis.call('SCARD', P .. 'held:group:' .. session) > 0 then
    stands = 'active'
  end
  redis.call('HSET', head, 'status', stands, 'last_used', int(now))
  index_session(session, was[1], was[2], was[3], stands, now)
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

-- The last event of a run or a flow, and the end of all following.
local function close_log(id, seq, status, outcome, event, now, most)
  local run = P .. 'run:' .. id
  redis.call('XADD', P .. 'events:' .. id, 'MAXLEN', '~', most, '0-' .. seq, 'e', event)
  redis.call('HSET', run, 'status', status, 'ended', int(now), 'outcome', outcome)
  redis.call('HDEL', run, 'cancel')
  redis.call('PEXPIRE', run, RETENTION_MS)
  redis.call('PEXPIRE', P .. 'events:' .. id, RETENTION_MS)
  redis.call('ZREM', P .. 'unfollowed', id)
  redis.call('ZREM', P .. 'impatient', id)
  local followers = publish(id, seq, { event })
  for _, api in ipairs(followers) do redis.call('SREM', P .. 'api:' .. api .. ':runs', id) end
  if #followers == 0 then redis.call('HSET', run, 'unseen', 1) end  -- its caller may come back for it
  redis.call('DEL', P .. 'followers:' .. id)
end

local function count(queue, status, outcome, created, started, now)
  local backend = string.match(queue, '^[^@]+')
  local code = ''
  if status ~= 'succeeded' then code = string.match(outcome, '"failure":{"code":"([%w_]+)"') or 'unknown' end
  local cause = code ~= '' and string.match(outcome, '"cause":"([a-z_]+)"') or ''
  if #cause > 40 then cause = 'other' end
  redis.call('HINCRBY', P .. 'totals', 'ended|' .. backend .. '|' .. status .. '|' .. code .. '|' .. cause, 1)
  local cost = tonumber(string.match(outcome, '"cost_usd":([%d.eE+-]+)') or '')
  if cost then redis.call('HINCRBY', P .. 'totals', 'cost_microusd|' .. backend, int(cost * 1e6)) end
  if started then
    observe('wait', backend, tonumber(started) - tonumber(created))
    observe('took', backend, now - tonumber(started))
  end
  for _, kind in ipairs({ 'input', 'output', 'cached', 'reasoning' }) do
    local tokens = string.match(outcome, '"' .. kind .. '_tokens":(%d+)')
    if tokens and tokens ~= '0' then redis.call('HINCRBY', P .. 'totals', 'tokens|' .. backend .. '|' .. kind, tokens) end
  end
end

-- What a host is to remove, whenever it comes back within the time that sessions are kept.
local function add_chore(host, chore)
  redis.call('LPUSH', P .. 'chores:' .. host, cjson.encode(chore))
  redis.call('PEXPIRE', P .. 'chores:' .. host, SESSION_MS)
end

-- Runs, tokens, cost and time by day, for those who pay: a hash a tenant, its fields measure|key|backend|model.
local function charge(tenant, about, queue, status, outcome, started, now)
  local key, model = string.match(about or '', '^([^\n]*)\n[^\n]*\n(.*)$')
  model = string.match(outcome, '"model":"([^"]*)"') or model or ''
  if model == '' then model = 'default' end
  model = string.sub(string.gsub(model, '[%c\\]', '_'), 1, 100)
  local day = P .. 'usage:' .. int(math.floor(now / 86400000))
  local name, what = day .. ':' .. tenant, '|' .. (key or '') .. '|' .. string.match(queue, '^[^@]+') .. '|'
  if redis.call('HEXISTS', name, 'took_ms' .. what .. model) == 0 then
    if redis.call('HLEN', name) >= USAGE_KINDS * 4 then model = '(other)' end
    redis.call('SADD', day, tenant)
    redis.call('PEXPIRE', day, USAGE_MS)
  end
  redis.call('HINCRBY', name, status .. what .. model, 1)
  redis.call('HINCRBY', name, 'took_ms' .. what .. model, int(started and math.max(now - tonumber(started), 0) or 0))
  for _, kind in ipairs({ 'input', 'output', 'cached', 'reasoning' }) do
    local tokens = string.match(outcome, '"' .. kind .. '_tokens":(%d+)')
    if tokens and tokens ~= '0' then redis.call('HINCRBY', name, kind .. '_tokens' .. what .. model, tokens) end
  end
  local cost = tonumber(string.match(outcome, '"cost_usd":([%d.eE+-]+)') or '')
  if cost then redis.call('HINCRBY', name, 'cost_microusd' .. what .. model, int(cost * 1e6)) end
  redis.call('PEXPIRE', name, USAGE_MS)
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

-- What begins anew needs no directory and no session of the CLI's of before: another host may have it. The one that it
-- leaves is remembered (a line each, "host cli_id"), since what lies there is still to be removed.
local function begin_anew(group)
  local begun
  if is_flow(group) then
    begun = redis.call('HGET', P .. 'run:' .. group, 'ends')
  else
    begun = redis.call('HGET', P .. 'session:' .. group, 'turn_count')
  end
  local g = redis.call('HMGET', P .. 'group:' .. group, 'host', 'was_on')
  if begun ~= '0' or not g[1] then return end
  local cli_id = redis.call('HGET', P .. 'session:' .. group, 'cli_id') or ''
  redis.call('HSET', P .. 'group:' .. group, 'was_on', (g[2] or '') .. g[1] .. ' ' .. cli_id .. '\n')
  redis.call('HDEL', P .. 'group:' .. group, 'host')
  if not is_flow(group) then redis.call('HDEL', P .. 'session:' .. group, 'host', 'cli_id') end
end

-- The hosts that a group has left, with the CLI's own id of a session there, or ''.
local function were_on(group)
  return string.gmatch(redis.call('HGET', P .. 'group:' .. group, 'was_on') or '', '([^ \n]+) ([^\n]*)\n')
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
