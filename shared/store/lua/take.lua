-- who, tokens a second, the most at once -> {allowed (0|1), whole tokens left, ms until the next, ms until all}
-- A token bucket by Redis' own clock: exact whichever replica asks.
local name = P .. 'rate:' .. ARGV[1]
local rate, most = tonumber(ARGV[2]) / 1000, tonumber(ARGV[3])
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
local was = redis.call('HMGET', name, 'tokens', 'at')
local tokens = math.min(most, (tonumber(was[1]) or most) + (now - (tonumber(was[2]) or now)) * rate)
local allowed = 0
if tokens >= 1 then
  tokens, allowed = tokens - 1, 1
end
redis.call('HSET', name, 'tokens', string.format('%.6f', tokens), 'at', string.format('%.3f', now))
redis.call('PEXPIRE', name, int(math.ceil(most / rate) + 1000))
local wait = 0
if tokens < 1 then wait = math.ceil((1 - tokens) / rate) end
return { allowed, math.floor(tokens), wait, math.ceil((most - tokens) / rate) }
