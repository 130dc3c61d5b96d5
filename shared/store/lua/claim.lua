-- id, token, host, instance -> {'claimed', spec, seq, attempt} | {status or ''}
-- queued -> running, once. The same token may ask again: its first answer may have been lost.
local id, token = ARGV[1], ARGV[2]
local run = P .. 'run:' .. id
local was = redis.call('HMGET', run, 'status', 'token', 'spec', 'seq', 'attempt')
if was[1] == 'running' and was[2] == token then return { 'claimed', was[3], was[4], was[5] } end
if was[1] ~= 'queued' then return { was[1] or '' } end
local now = now_ms()
local attempt = redis.call('HINCRBY', run, 'attempt', 1)
redis.call('HSET', run, 'status', 'running', 'token', token, 'host', ARGV[3], 'instance', ARGV[4], 'started', int(now))
redis.call('ZREM', P .. 'queued', id)
redis.call('ZREM', P .. 'impatient', id)
redis.call('ZADD', P .. 'running', int(now + LEASE_MS), id)
return { 'claimed', was[3], was[4], tostring(attempt) }
