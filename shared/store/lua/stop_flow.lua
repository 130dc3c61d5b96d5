-- flow, failure as JSON, condition ('' | 'unfollowed'), alone_ms -> the failure that stands, or '' where it is kept or has ended.
-- No further run of it leaves its line; the runs that there are must be cancelled by whoever asks.
local run = P .. 'run:' .. ARGV[1]
local was = redis.call('HMGET', run, 'status', 'detached')
if was[1] ~= 'running' then return '' end
if ARGV[3] == 'unfollowed' and (was[2] or followed(ARGV[1], tonumber(ARGV[4]))) then return '' end
redis.call('HSETNX', P .. 'group:' .. ARGV[1], 'stop', ARGV[2])
redis.call('ZADD', P .. 'due', int(now_ms()), ARGV[1])
return redis.call('HGET', P .. 'group:' .. ARGV[1], 'stop')
