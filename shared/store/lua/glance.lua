-- flow -> 1 where there is something to decide, 0 where it only goes on. Most ends of a large flow mean nothing to it.
local run = P .. 'run:' .. ARGV[1]
local was = redis.call('HMGET', run, 'status', 'kind', 'ends', 'lanes')
if was[1] ~= 'running' then
  redis.call('ZREM', P .. 'due', ARGV[1])
  return 0
end
local closed = redis.call('HLEN', P .. 'closed:' .. ARGV[1])
if was[2] == 'chain' or redis.call('HGET', P .. 'group:' .. ARGV[1], 'stop')
  or tonumber(was[3]) + closed >= tonumber(was[4]) then
  return 1
end
redis.call('ZREM', P .. 'due', ARGV[1])
return 0
