-- id, api -> 1 where an attached, living run has nobody left, else 0
local id, api = ARGV[1], ARGV[2]
redis.call('SREM', P .. 'followers:' .. id, api)
redis.call('SREM', P .. 'api:' .. api .. ':runs', id)
local was = redis.call('HMGET', P .. 'run:' .. id, 'status', 'detached')
if not was[1] or final(was[1]) or was[2] or redis.call('SCARD', P .. 'followers:' .. id) > 0 then return 0 end
redis.call('ZADD', P .. 'unfollowed', 'NX', int(now_ms()), id)
return 1
