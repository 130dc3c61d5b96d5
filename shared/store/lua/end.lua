-- id, token, status, outcome, last event, retryable (0|1), first sequence, count, event… -> 'ended' | 'again' | 'lost'
-- running -> final by the attempt that holds it, with the events not yet sent. Safe to repeat.
local id, token, status = ARGV[1], ARGV[2], ARGV[3]
local run = P .. 'run:' .. id
local was = redis.call('HMGET', run, 'status', 'token', 'retry', 'seq', 'cancel', 'group', 'lane')
if was[2] ~= token then return 'lost' end
if final(was[1]) then return 'ended' end
if was[1] ~= 'running' then return 'lost' end
append(id, was[6], was[7], tonumber(was[4] or '0'), tonumber(ARGV[7]), 9, tonumber(ARGV[8]))
local now = now_ms()
if ARGV[6] == '1' and tonumber(was[3] or '0') > 0 and not was[5] then
  again(id, now)
  return 'again'
end
finish(id, status, ARGV[4], ARGV[5], now)
return 'ended'
