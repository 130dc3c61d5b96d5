-- who, tokens a second, the most at once -> {allowed (0|1), whole tokens left, ms until the next, ms until all}
-- A token bucket by Redis' own clock: exact whichever replica asks. `api/steady.py` has the same for when Redis is away.
--
-- Who is refused is promised a moment at which a token is there for it beside those promised before (`promised`: the last
-- moment given away), so that all who obey pass. They obey in whole seconds, rounded up: promises of one second may all
-- be kept at its end, so a second has no more of them than the bucket holds; and who then comes a little late must not
-- find that the bucket overflowed meanwhile, so half a second's tokens more are kept while promises are open.
-- Until the first of them can be back (`series`: when the first was refused), who asks is new, and may not have the tokens
-- that are promised.
-- Who does not obey pushes the moments of others who share its bucket no further than until the bucket would be full, or
-- 10 s where that is longer: beyond it several are promised one moment.
local LONGEST_MS, LATE_MS, ROUNDED_MS = 10000, 500, 1000
local name = P .. 'rate:' .. ARGV[1]
local rate, most = tonumber(ARGV[2]) / 1000, tonumber(ARGV[3])
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
local was = redis.call('HMGET', name, 'tokens', 'at', 'promised', 'series')
local promised, series = tonumber(was[3]) or 0, tonumber(was[4]) or 0
local room = most
if now < promised + ROUNDED_MS + LATE_MS then room = most + rate * LATE_MS end
local tokens = math.min(room, (tonumber(was[1]) or most) + (now - (tonumber(was[2]) or now)) * rate)
local kept = 0
if now < promised and now < series + ROUNDED_MS then kept = math.min((promised - now) * rate, room - 1) end
local allowed = 0
if tokens >= kept + 0.999999 then
  tokens, allowed = math.max(tokens - 1, 0), 1
end
local wait = 0
if tokens < 1 then wait = (1 - tokens) / rate end
if allowed == 0 then
  if promised <= now then series = now end
  local beside = promised + math.max(1 / rate, 1000 / most)
  promised = math.max(now + wait, math.min(beside, now + math.max(LONGEST_MS, most / rate)))
  wait = promised - now
end
redis.call('HSET', name, 'tokens', string.format('%.9f', tokens), 'at', string.format('%.3f', now),
  'promised', string.format('%.3f', promised), 'series', string.format('%.3f', series))
redis.call('PEXPIRE', name, int(math.ceil(math.max(most / rate, promised - now) + ROUNDED_MS + LATE_MS)))
local left = math.min(math.max(math.floor(tokens - kept), 0), most)
return { allowed, left, math.ceil(wait), math.ceil(math.max(most - tokens, 0) / rate) }
