-- id, tenant, queue, spec, api ('' for detached), priority, retry, max_depth -> {status} | {'full', depth}
-- Record, follower, place in line and, where there is room, the Celery message: one step. Safe to repeat.
local id, tenant, queue, spec, api, priority, retry = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local run = P .. 'run:' .. id
local status = redis.call('HGET', run, 'status')
if status then return { status } end
local depth = redis.call('ZCARD', P .. 'waiting')
if depth >= tonumber(ARGV[8]) then return { 'full', depth } end
local now = now_ms()
redis.call('HSET', run, 'spec', spec, 'tenant', tenant, 'queue', queue, 'status', 'waiting', 'created', int(now),
  'priority', priority, 'retry', retry, 'seq', 0, 'attempt', 0)
redis.call('ZADD', P .. 'runs:' .. tenant, int(now), id)
redis.call('PEXPIRE', P .. 'runs:' .. tenant, RETENTION_MS * 2)
if api == '' then
  redis.call('HSET', run, 'detached', 1)
else
  redis.call('SADD', P .. 'followers:' .. id, api)
  redis.call('SADD', P .. 'api:' .. api .. ':runs', id)
end
stand_in_line(id, queue, tenant, priority, now)
release(queue, now)
return { redis.call('HGET', run, 'status') }
