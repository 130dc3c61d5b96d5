-- flow, run… -> 1 where nothing is left of an ended flow and of its runs, else 0
local flow = ARGV[1]
local was = redis.call('HMGET', P .. 'run:' .. flow, 'status', 'tenant')
if not was[1] or not final(was[1]) then return 0 end
for i = 2, #ARGV do
  local status = redis.call('HGET', P .. 'run:' .. ARGV[i], 'status')
  if status and not final(status) then return 0 end
end
for i = 2, #ARGV do erase(ARGV[i]) end
redis.call('ZREM', P .. 'flows:' .. was[2], flow)
redis.call('ZREM', P .. 'due', flow)
redis.call('DEL', P .. 'closed:' .. flow, P .. 'group:' .. flow, P .. 'line:group:' .. flow, P .. 'held:group:' .. flow)
erase(flow)
return 1
