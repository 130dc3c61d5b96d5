-- id -> 1 where nothing is left of an ended run, else 0
local status = redis.call('HGET', P .. 'run:' .. ARGV[1], 'status')
if not status or not final(status) then return 0 end
erase(ARGV[1])
return 1
