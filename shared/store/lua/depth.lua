-- queue… -> {queue, runs that wait in its lines, ms since the first of them came}…, ms since the last sweep or -1
-- Of the queues that are named and of all that some instance offers. Costs a few commands for each tenant that waits.
local now = now_ms()
local queues, seen, out = redis.call('SMEMBERS', P .. 'queues'), {}, {}
for _, queue in ipairs(ARGV) do queues[#queues + 1] = queue end
for _, queue in ipairs(queues) do
  if not seen[queue] then
    seen[queue] = true
    local depth, oldest = 0, 0
    for _, tenant in ipairs(redis.call('ZRANGE', P .. 'turns:' .. queue, 0, -1)) do
      local line = P .. 'line:' .. queue .. '|' .. tenant
      depth = depth + redis.call('ZCARD', line)
      -- The first interactive one and the first of a batch.
      for _, from in ipairs({ '-inf', '1e15' }) do
        local id = redis.call('ZRANGEBYSCORE', line, from, '+inf', 'LIMIT', 0, 1)[1]
        local created = id and tonumber(redis.call('HGET', P .. 'run:' .. id, 'created') or '')
        if created then oldest = math.max(oldest, now - created) end
      end
    end
    out[#out + 1] = { queue, depth, oldest }
  end
end
local swept = redis.call('GET', P .. 'swept')
return { out, swept and now - tonumber(swept) or -1 }
