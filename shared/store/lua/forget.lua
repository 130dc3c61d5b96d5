-- id -> 1 where the record of an ended run has been removed with all its events, else 0
local id = ARGV[1]
local was = redis.call('HMGET', P .. 'run:' .. id, 'status', 'tenant', 'owner')
if not was[1] or not final(was[1]) then return 0 end
redis.call('DEL', P .. 'run:' .. id, P .. 'events:' .. id)
redis.call('ZREM', P .. 'runs:' .. (was[3] or was[2]), id)
return 1
