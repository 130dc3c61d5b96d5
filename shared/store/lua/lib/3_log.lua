-- The events of runs and flows, and who follows them.

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
