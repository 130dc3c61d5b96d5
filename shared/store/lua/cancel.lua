-- id, failure, outcome, last event, condition, alone_ms -> 'ended' | 'ordered' | 'kept' | final status | ''
-- condition: '' always; 'unfollowed' only where nobody has followed an attached run for alone_ms; 'unstarted' only before its start
-- waiting and queued end at once; running gets an order that its worker acts on.
local id, condition = ARGV[1], ARGV[5]
local run = P .. 'run:' .. id
local was = redis.call('HMGET', run, 'status', 'instance', 'detached')
local status = was[1]
if not status then return '' end
if final(status) then return status end
if condition == 'unfollowed' and (was[3] or followed(id, tonumber(ARGV[6]))) then return 'kept' end
if status == 'waiting' or status == 'queued' then
  local ends = 'cancelled'
  if string.find(ARGV[2], '"code":"cancelled"', 1, true) == nil then ends = 'failed' end
  finish(id, ends, ARGV[3], ARGV[4], now_ms())
  return 'ended'
end
if condition == 'unstarted' then return 'kept' end
redis.call('HSETNX', run, 'cancel', ARGV[2])
redis.call('PUBLISH', P .. 'orders:' .. was[2], 'cancel ' .. id .. ' ' .. redis.call('HGET', run, 'cancel'))
return 'ordered'
