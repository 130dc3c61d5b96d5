-- api, lease_ms -> the runs that this API process is said to follow. Keeps its followers counting.
local now = now_ms()
redis.call('ZADD', P .. 'apis', int(now + tonumber(ARGV[2])), ARGV[1])
return redis.call('SMEMBERS', P .. 'api:' .. ARGV[1] .. ':runs')
