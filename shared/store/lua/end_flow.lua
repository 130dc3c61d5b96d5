-- flow, status, outcome, last event, number of hosts, host that has its directory…, run… -> 'ended' | final status | ''
local flow = ARGV[1]
local run = P .. 'run:' .. flow
local status = redis.call('HGET', run, 'status')
if status ~= 'running' then return status or '' end
local seq = redis.call('HINCRBY', run, 'seq', 1)
local event = string.gsub(ARGV[4], '"sequence":0,', '"sequence":' .. seq .. ',', 1)
close_log(flow, seq, ARGV[2], ARGV[3], event, now_ms(), flow_events(flow))
redis.call('PEXPIRE', P .. 'closed:' .. flow, RETENTION_MS)
local hosts = tonumber(ARGV[5])
local has = {}
for i = 6, 5 + hosts do has[ARGV[i]] = true end
for host in were_on(flow) do has[host] = true end
for host in pairs(has) do add_chore(host, { workspace = flow }) end
redis.call('DEL', P .. 'group:' .. flow, P .. 'line:group:' .. flow, P .. 'held:group:' .. flow)
redis.call('ZREM', P .. 'due', flow)
for i = 6 + hosts, #ARGV do
  redis.call('PEXPIRE', P .. 'run:' .. ARGV[i], RETENTION_MS)
  redis.call('PEXPIRE', P .. 'events:' .. ARGV[i], RETENTION_MS)
end
return 'ended'
