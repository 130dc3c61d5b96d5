-- id, token, host, instance -> {'claimed', spec, seq, attempt, cli's own id of the session or '', tokens of the session so far as JSON or '', ms since it was asked for} | {status or ''}
-- queued -> running, once. The same token may ask again: its first answer may have been lost.
local id, token = ARGV[1], ARGV[2]
local run = P .. 'run:' .. id
local was = redis.call('HMGET', run, 'status', 'token', 'spec', 'seq', 'attempt', 'group', 'queue', 'created')
local cli_id, used = '', ''
if was[6] then
  local s = redis.call('HMGET', P .. 'session:' .. was[6], 'cli_id', 'input_tokens', 'output_tokens', 'cached_tokens',
    'reasoning_tokens')
  cli_id = s[1] or ''
  if s[2] then
    used = string.format('{"input_tokens":%s,"output_tokens":%s,"cached_tokens":%s,"reasoning_tokens":%s}', s[2], s[3],
      s[4], s[5])
  end
end
if was[1] == 'running' and was[2] == token then return { 'claimed', was[3], was[4], was[5], cli_id, used } end
if was[1] ~= 'queued' then return { was[1] or '' } end
local only = string.match(was[7], '@(.*)$')  -- a hint that an earlier host of it was given may lie there still
if only and only ~= ARGV[3] then return { was[1] } end
bind(was[7], -1)
local now = now_ms()
local attempt = redis.call('HINCRBY', run, 'attempt', 1)
redis.call('HSET', run, 'status', 'running', 'token', token, 'host', ARGV[3], 'instance', ARGV[4], 'started', int(now))
redis.call('ZREM', P .. 'queued', id)
redis.call('ZREM', P .. 'impatient', id)
redis.call('ZADD', P .. 'running', int(now + LEASE_MS), id)
if was[6] and redis.call('HGET', P .. 'group:' .. was[6], 'sticky') then
  redis.call('HSET', P .. 'group:' .. was[6], 'host', ARGV[3])
  if redis.call('EXISTS', P .. 'session:' .. was[6]) == 1 then
    redis.call('HSET', P .. 'session:' .. was[6], 'host', ARGV[3])
  end
end
return { 'claimed', was[3], was[4], tostring(attempt), cli_id, used, now - tonumber(was[8]) }
