-- id, api -> {status, sequence} | {}
local run = P .. 'run:' .. ARGV[1]
local was = redis.call('HMGET', run, 'status', 'seq')
if not was[1] then return {} end
if not final(was[1]) then follow(ARGV[1], ARGV[2]) end
return { was[1], was[2] }
