-- id -> 1 where it lives. Nobody needs to follow it from now on.
local status = redis.call('HGET', P .. 'run:' .. ARGV[1], 'status')
if not status or final(status) then return 0 end
attach(ARGV[1], '')
return 1
