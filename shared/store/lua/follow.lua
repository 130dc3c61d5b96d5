-- id, api -> {status, sequence} | {}
local run = P .. 'run:' .. ARGV[1]
local was = redis.call('HMGET', run, 'status', 'seq')
if not was[1] then return {} end
if not final(was[1]) then
  redis.call('SADD', P .. 'followers:' .. ARGV[1], ARGV[2])
  redis.call('SADD', P .. 'api:' .. ARGV[2] .. ':runs', ARGV[1])
  redis.call('ZREM', P .. 'unfollowed', ARGV[1])
end
return { was[1], was[2] }
