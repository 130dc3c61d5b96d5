-- queue… -> {queue, runs that wait in its lines, ms since the first of them came, runs that would start if there were
-- another slot, ms since the first of those came}…, ms since the last sweep or -1
-- Of the queues that are named and of all that some instance offers. Costs a few commands for each tenant that waits,
-- and one for each queued run, of which a thousand at most are looked at.
local now = now_ms()
local queues, seen, out, room = redis.call('SMEMBERS', P .. 'queues'), {}, {}, {}
for _, queue in ipairs(ARGV) do queues[#queues + 1] = queue end

-- Another slot helps what is hinted and not yet claimed, and what a tenant's own window would let go; not what must go
-- to one host.
local queued, first = {}, {}
for _, id in ipairs(redis.call('ZRANGE', P .. 'queued', 0, 999)) do
  local was = redis.call('HMGET', P .. 'run:' .. id, 'queue', 'created')
  if was[1] and was[2] then
    queued[was[1]] = (queued[was[1]] or 0) + 1
    first[was[1]] = math.max(first[was[1]] or 0, now - tonumber(was[2]))
  end
end

local function room_of(tenant)
  if not room[tenant] then
    local limit = tonumber(redis.call('HGET', P .. 'limits', tenant) or 'inf') or math.huge
    room[tenant] = math.max(limit - redis.call('SCARD', P .. 'held:tenant:' .. tenant), 0)
  end
  return room[tenant]
end

for _, queue in ipairs(queues) do
  if not seen[queue] then
    seen[queue] = true
    local anywhere = not string.find(queue, '@', 1, true)
    local depth, oldest = 0, 0
    local wanted, longest = anywhere and queued[queue] or 0, anywhere and first[queue] or 0
    for _, tenant in ipairs(redis.call('ZRANGE', P .. 'turns:' .. queue, 0, -1)) do
      local line = P .. 'line:' .. queue .. '|' .. tenant
      local count = redis.call('ZCARD', line)
      depth = depth + count
      local go = anywhere and math.min(count, room_of(tenant)) or 0
      wanted = wanted + go
      if go > 0 then room[tenant] = room[tenant] - go end
      -- The first interactive one and the first of a batch.
      for _, from in ipairs({ '-inf', '1e15' }) do
        local id = redis.call('ZRANGEBYSCORE', line, from, '+inf', 'LIMIT', 0, 1)[1]
        local created = id and tonumber(redis.call('HGET', P .. 'run:' .. id, 'created') or '')
        if created then
          oldest = math.max(oldest, now - created)
          if go > 0 then longest = math.max(longest, now - created) end
        end
      end
    end
    out[#out + 1] = { queue, depth, oldest, wanted, longest }
  end
end
local swept = redis.call('GET', P .. 'swept')
return { out, swept and now - tonumber(swept) or -1 }
