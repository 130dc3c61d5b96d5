-- flow, status, outcome, last event, number of hosts, host that has its directory…, run… -> 'ended' | final status | ''
local flow = ARGV[1]
local run = P .. 'run:' .. flow
local status = redis.call('HGET', run, 'status')
if status ~= 'running' then return status or '' end
local seq = redis.call('HINCRBY', run, 'seq', 1)
local event = string.gsub(ARGV[4], '"sequence":0,', '"sequence":' .. seq .. ',', 1)
close_log(flow, seq, ARGV[2], ARGV[3], event, now_ms(), flow_events(flow))
redis.call('PEXPIRE', P .. 'closed:' .. flow, RETENTION_MS)
redis.call('DEL', P .. 'group:' .. flow, P .. 'line:group:' .. flow, P .. 'held:group:' .. flow)
redis.call('ZREM', P .. 'due', flow)
local hosts = tonumber(ARGV[5])
for i = 6, 5 + hosts do add_chore(ARGV[i], { workspace = flow }) end
for i = 6 + hosts, #ARGV do
  redis.call('PEXPIRE', P .. 'run:' .. ARGV[i], RETENTION_MS)
  redis.call('PEXPIRE', P .. 'events:' .. ARGV[i], RETENTION_MS)
end
return 'ended'
