-- flow, tenant, id, queue, spec, priority, retry, lane, about -> 'added' | 'there' | 'stopped'. A chain's next step, once.
local flow, id = ARGV[1], ARGV[3]
if redis.call('HGET', P .. 'run:' .. id, 'status') then return 'there' end
if redis.call('HGET', P .. 'run:' .. flow, 'status') ~= 'running' then return 'stopped' end
if redis.call('HGET', P .. 'group:' .. flow, 'stop') then return 'stopped' end
redis.call('HSET', P .. 'run:' .. id, 'detached', 1)
create(id, ARGV[2], ARGV[4], ARGV[5], ARGV[6], ARGV[7], now_ms(), flow, ARGV[8], ARGV[9])
return 'added'
