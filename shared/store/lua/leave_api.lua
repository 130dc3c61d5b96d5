-- api -> how many runs lost a follower. An API process that ended, by itself or found dead by the sweep.
local api = ARGV[1]
local now = int(now_ms())
local runs = redis.call('SMEMBERS', P .. 'api:' .. api .. ':runs')
for _, id in ipairs(runs) do
  redis.call('SREM', P .. 'followers:' .. id, api)
  local was = record(id, 'status', 'detached')
  if was[1] and not final(was[1]) and not was[2] and redis.call('SCARD', P .. 'followers:' .. id) == 0 then
    redis.call('ZADD', P .. 'unfollowed', 'NX', now, id)
  end
end
redis.call('DEL', P .. 'api:' .. api .. ':runs')
redis.call('ZREM', P .. 'apis', api)
return #runs
