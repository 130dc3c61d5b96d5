-- every_ms, pause_ms, max_wait_ms, grace_ms, limit, stranded_ms -> {} | {lost ids, overdue ids, unfollowed ids, dead apis, impatient ids, due flows, old sessions, stranded ids}
-- Finds what is due; each finding is acted on by a script that looks again. Only one process sweeps at a time, since
-- whoever comes sooner than every_ms after the last sweep finds nothing to do. Where nobody swept for pause_ms,
-- Redis or all sweepers were away: no lease is judged for one whole lease from now.
local now = now_ms()
local last = tonumber(redis.call('GET', P .. 'swept') or '0')
if now - last < tonumber(ARGV[1]) then return {} end
redis.call('SET', P .. 'swept', int(now))
if now - last > tonumber(ARGV[2]) then redis.call('SET', P .. 'hold', int(now + LEASE_MS), 'PX', LEASE_MS) end
local limit = ARGV[5]

for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do measure(queue, now) end
for _, instance in ipairs(redis.call('ZRANGEBYSCORE', P .. 'instances', 0, int(now - 60000))) do
  redis.call('ZREM', P .. 'instances', instance)
end

-- What is kept longest of a tenant is a session, or a run that took its time and was kept from its end on.
local longest = math.max(SESSION_MS, RETENTION_MS) + LONGEST_RUN_MS
redis.call('ZREMRANGEBYSCORE', P .. 'tenants', 0, int(now - longest))

-- How many runs a second leave the lines, over the last half minute or so in which any waited.
local went = tonumber(redis.call('GET', P .. 'left') or '0')
local pace = redis.call('HMGET', P .. 'pace', 'at', 'left', 'per_s')
local past = now - tonumber(pace[1] or '0')
if past >= 1000 then
  if past < 10000 and redis.call('ZCARD', P .. 'waiting') > 0 then
    local per_s = (went - tonumber(pace[2])) * 1000 / past
    if pace[3] then per_s = tonumber(pace[3]) + (per_s - tonumber(pace[3])) * (1 - math.exp(-past / 15000)) end
    redis.call('HSET', P .. 'pace', 'per_s', string.format('%.6f', per_s))
  end
  redis.call('HSET', P .. 'pace', 'at', int(now), 'left', int(went))
end

local overdue = redis.call('ZRANGEBYSCORE', P .. 'waiting', 0, int(now - tonumber(ARGV[3])), 'LIMIT', 0, limit)

-- A hint may be lost, or lie with a worker that died. Where its list is empty, soon; where it may still be in
-- the list, late: one too many does no harm, since a run is claimed once.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'queued', 0, int(now - 3000), 'LIMIT', 0, limit)) do
  local was = record(id, 'queue', 'created')
  local queue = was[1]
  if not queue or not tonumber(was[2] or '') then
    overdue[#overdue + 1] = id  -- whoever looks at it sees that it cannot be read
  elseif now - tonumber(was[2]) > tonumber(ARGV[3]) then
    overdue[#overdue + 1] = id
  else
    local hinted = tonumber(redis.call('ZSCORE', P .. 'queued', id))
    if redis.call('LLEN', queue) == 0 or now - hinted > 30000 then
      redis.call('HINCRBY', P .. 'totals', 'mended|hint', 1)
      hint(id, queue, now)
    end
  end
end

local dead = {}
for _, api in ipairs(redis.call('ZRANGEBYSCORE', P .. 'apis', 0, int(now))) do
  if not redis.call('GET', P .. 'hold') then dead[#dead + 1] = api end
end
local lost = {}
if not redis.call('GET', P .. 'hold') then
  lost = redis.call('ZRANGEBYSCORE', P .. 'running', 0, int(now), 'LIMIT', 0, limit)
end
local alone = redis.call('ZRANGEBYSCORE', P .. 'unfollowed', 0, int(now - tonumber(ARGV[4])), 'LIMIT', 0, limit)
local impatient = redis.call('ZRANGEBYSCORE', P .. 'impatient', 0, int(now), 'LIMIT', 0, limit)
for _, id in ipairs(impatient) do redis.call('ZREM', P .. 'impatient', id) end
local due = redis.call('ZRANGEBYSCORE', P .. 'due', 0, int(now - 1000), 'LIMIT', 0, limit)
local old = redis.call('ZRANGEBYSCORE', P .. 'sessions', 0, int(now - SESSION_MS), 'LIMIT', 0, limit)

-- Runs that must go to one host which has not taken any for a while: it is gone or drained, or its CLI, login or quota is.
local stranded = {}
if not redis.call('GET', P .. 'hold') then
  local bound = redis.call('HGETALL', P .. 'bound')
  for i = 1, #bound, 2 do
    local queue = bound[i]
    local since = redis.call('HGET', P .. 'stranded', queue)
    if tonumber(redis.call('GET', P .. 'room:' .. queue) or '0') > 0 then
      redis.call('HDEL', P .. 'stranded', queue)
    elseif not since then
      redis.call('HSET', P .. 'stranded', queue, int(now))
    elseif now - tonumber(since) >= tonumber(ARGV[6]) then
      for _, id in ipairs(redis.call('SMEMBERS', P .. 'held:queue:' .. queue)) do
        if #stranded < tonumber(limit) and record(id, 'status')[1] == 'queued' then
          stranded[#stranded + 1] = id
        end
      end
      for _, tenant in ipairs(redis.call('ZRANGE', P .. 'turns:' .. queue, 0, -1)) do
        local line = P .. 'line:' .. queue .. '|' .. tenant
        local some = redis.call('ZRANGE', line, 0, limit - 1)
        if #some == tonumber(limit) then  -- should the first ones have nowhere to go, others might
          some = redis.call('ZRANDMEMBER', line, limit)
        end
        for _, id in ipairs(some) do
          if #stranded < tonumber(limit) then stranded[#stranded + 1] = id end
        end
      end
    end
  end
end
local was = redis.call('HGETALL', P .. 'stranded')
for i = 1, #was, 2 do
  if now - tonumber(was[i + 1]) > 60000 and redis.call('HEXISTS', P .. 'bound', was[i]) == 0 then
    redis.call('HDEL', P .. 'stranded', was[i])
  end
end
return { lost, overdue, alone, dead, impatient, due, old, stranded }
