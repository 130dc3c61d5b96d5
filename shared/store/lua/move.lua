-- id, queue, to ('' for: nowhere) -> 'moved' | 'stays' | 'pinned' | 'kept'. An unstarted run to the line of another queue, its place kept.
local id, queue, to = ARGV[1], ARGV[2], ARGV[3]
local run = P .. 'run:' .. id
local was = redis.call('HMGET', run, 'status', 'queue', 'tenant', 'priority', 'group', 'created', 'hints')
if was[2] ~= queue or (was[1] ~= 'waiting' and was[1] ~= 'queued') then return 'kept' end
if was[5] and redis.call('HGET', P .. 'group:' .. was[5], 'host') then return 'pinned' end
local place = 0
if was[4] == 'batch' then place = 1e15 end
if was[1] == 'waiting' then
  place = redis.call('ZSCORE', P .. 'line:' .. queue .. '|' .. was[3], id)
  if not place then return 'kept' end  -- it waits for its group's window
end
if to == '' then return 'stays' end
if to == queue then return 'kept' end
local now = now_ms()
local since = redis.call('ZSCORE', P .. 'waiting', id)
if was[1] == 'queued' then redis.call('LREM', queue, 0, message(id, queue, was[7])) end
leave(id, queue, was[3], was[1], now)
redis.call('HSET', run, 'status', 'waiting', 'queue', to)
stand_in_line(id, to, was[3], was[4], now, place)
if since then
  redis.call('ZADD', P .. 'waiting', since, id)
elseif not was[5] then
  redis.call('ZADD', P .. 'waiting', was[6], id)
end
release(to, now)
return 'moved'
