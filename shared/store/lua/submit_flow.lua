-- flow, tenant, flow as JSON, api ('' for detached), window, sticky (0|1), max_depth, count, what to stop with at the first failure ('' for: nothing), kind, lanes, max_depth_per_tenant,
-- (id, queue, spec, priority, retry, lane, about)… -> {'running'} | {'full', …} (see `full`) | {final status}
-- A flow's record stands beside the runs' (status, seq), so that it is followed as a run is. Safe to repeat.
local flow, tenant, api, count = ARGV[1], ARGV[2], ARGV[4], tonumber(ARGV[8])
local run = P .. 'run:' .. flow
local status = redis.call('HGET', run, 'status')
if status then return { status } end
local no_room = full(holder(tenant, ARGV[19]), math.min(count, tonumber(ARGV[5])), tonumber(ARGV[7]), tonumber(ARGV[12]))
if no_room then return no_room end
local now = now_ms()
redis.call('HSET', run, 'flow', ARGV[3], 'tenant', tenant, 'status', 'running', 'created', int(now), 'seq', 0, 'ends', 0)
redis.call('HSET', P .. 'group:' .. flow, 'window', ARGV[5])
if ARGV[6] == '1' then redis.call('HSET', P .. 'group:' .. flow, 'sticky', 1) end
redis.call('ZADD', P .. 'flows:' .. tenant, int(now), flow)
redis.call('ZREMRANGEBYSCORE', P .. 'flows:' .. tenant, 0, int(now - RETENTION_MS - LONGEST_RUN_MS))
redis.call('PEXPIRE', P .. 'flows:' .. tenant, int(RETENTION_MS + LONGEST_RUN_MS))
attach(flow, api)
if ARGV[9] ~= '' then redis.call('HSET', P .. 'group:' .. flow, 'fast', ARGV[9]) end
redis.call('HSET', run, 'kind', ARGV[10], 'lanes', ARGV[11])
for i = 13, 12 + count * 7, 7 do
  redis.call('HSET', P .. 'run:' .. ARGV[i], 'detached', 1)
  create(ARGV[i], tenant, ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], now, flow, ARGV[i + 5], ARGV[i + 6])
end
redis.call('ZADD', P .. 'due', int(now), flow)  -- until its carrier has looked at it once
return { 'running' }
