-- id, outcome, last event -> 1. A run whose record cannot be read, or is gone, ends as far as it can be: it leaves every
-- line and window, whoever follows it is told, what is left of it expires. Nothing of the record is believed.
local id, outcome, event = ARGV[1], ARGV[2], ARGV[3]
local run, now = P .. 'run:' .. id, now_ms()
local was = record(id, 'status', 'group', 'seq')
for _, name in ipairs({ 'waiting', 'grouped', 'queued', 'running', 'unfollowed', 'impatient', 'due' }) do
  redis.call('ZREM', P .. name, id)
end
local tenants = redis.call('ZRANGE', P .. 'tenants', 0, -1)
local limits = redis.call('HGETALL', P .. 'limits')
for i = 1, #limits, 2 do tenants[#tenants + 1] = limits[i] end
for _, tenant in ipairs(tenants) do redis.call('SREM', P .. 'held:tenant:' .. tenant, id) end
local queues = redis.call('SMEMBERS', P .. 'queues')
local bound = redis.call('HGETALL', P .. 'bound')
for i = 1, #bound, 2 do queues[#queues + 1] = bound[i] end
for _, queue in ipairs(queues) do
  local held = redis.call('SREM', P .. 'held:queue:' .. queue, id)
  for _, tenant in ipairs(redis.call('ZRANGE', P .. 'turns:' .. queue, 0, -1)) do
    local line = P .. 'line:' .. queue .. '|' .. tenant
    held = held + redis.call('ZREM', line, id)
    if redis.call('ZCARD', line) == 0 then
      redis.call('ZREM', P .. 'turns:' .. queue, tenant)
      redis.call('SREM', P .. 'lines:' .. tenant, queue)
    end
  end
  if held > 0 and was[1] ~= 'running' then bind(queue, -1) end
  release(queue, now)
end
if was[1] and not final(was[1]) then
  redis.call('HSET', run, 'status', 'failed', 'outcome', outcome, 'ended', int(now))
  local seq = math.floor(tonumber(was[3] or '') or 0) + 1
  event = string.gsub(event, '"sequence":0,', '"sequence":' .. int(seq) .. ',', 1)
  redis.pcall('XADD', P .. 'events:' .. id, '0-' .. int(seq), 'e', event)
  redis.pcall('HSET', run, 'seq', int(seq))
  publish(id, seq, { event })
end
redis.call('DEL', P .. 'followers:' .. id)
redis.call('PEXPIRE', run, RETENTION_MS)
redis.call('PEXPIRE', P .. 'events:' .. id, RETENTION_MS)
local group = was[2]
if group then
  redis.pcall('SREM', P .. 'held:group:' .. group, id)
  redis.pcall('LREM', P .. 'line:group:' .. group, 0, id)
  if is_flow(group) and record(group, 'status')[1] == 'running' then
    redis.pcall('HINCRBY', P .. 'run:' .. group, 'ends', 1)
    redis.call('ZADD', P .. 'due', int(now), group)
  end
end
return 1
