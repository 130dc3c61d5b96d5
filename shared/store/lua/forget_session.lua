-- id, idle_since_ms ('' for whatever) -> 'deleted' | 'active' | ''. What its host keeps of it becomes that host's chore.
local id = ARGV[1]
local head = P .. 'session:' .. id
local was = redis.call('HMGET', head, 'tenant', 'backend', 'status', 'host', 'cli_id', 'last_used')
if not was[1] then
  redis.call('ZREM', P .. 'sessions', id)
  return ''
end
if was[3] == 'active' then return 'active' end
if ARGV[2] ~= '' and tonumber(was[6]) > tonumber(ARGV[2]) then return 'active' end
local all = P .. 'sessions:' .. was[1]
for _, name in ipairs({ '', '|' .. was[2] .. '|', '||' .. was[3], '|' .. was[2] .. '|' .. was[3] }) do
  redis.call('ZREM', all .. name, id)
end
redis.call('ZREM', P .. 'sessions', id)
redis.call('ZREM', P .. 'sessionids:' .. was[1], id)
for host, cli_id in were_on(id) do
  if host ~= was[4] then add_chore(host, { session = id, backend = was[2], cli_id = cli_id }) end
end
redis.call('DEL', head, P .. 'group:' .. id, P .. 'line:group:' .. id, P .. 'held:group:' .. id)
if was[4] then add_chore(was[4], { session = id, backend = was[2], cli_id = was[5] or '' }) end
return 'deleted'
