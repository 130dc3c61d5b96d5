-- id, status, outcome, last event -> 'ended' | 'again' | 'kept'. Ends a run whose lease has run out; its worker is dead.
local id = ARGV[1]
local now = now_ms()
local run = P .. 'run:' .. id
local was = redis.call('HMGET', run, 'status', 'retry', 'cancel', 'queue')
if not was[1] then
  redis.call('ZREM', P .. 'running', id)
  return 'kept'
end
local lease = tonumber(redis.call('ZSCORE', P .. 'running', id) or 'inf')
if was[1] ~= 'running' or lease > now or redis.call('GET', P .. 'hold') then return 'kept' end
redis.call('HINCRBY', P .. 'totals', 'lease_lost|' .. string.match(was[4], '^[^@]+'), 1)
if tonumber(was[2] or '0') > 0 and not was[3] then
  again(id, now)
  return 'again'
end
finish(id, ARGV[2], ARGV[3], ARGV[4], now)
return 'ended'
