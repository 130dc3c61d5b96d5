-- (id, token)… -> {id, 'lost' | cancel order as JSON}… for those that may not simply go on
local until_ms = int(now_ms() + LEASE_MS)
local out = {}
for i = 1, #ARGV, 2 do
  local id = ARGV[i]
  local was = record(id, 'status', 'token', 'cancel')
  if was[1] == 'running' and was[2] == ARGV[i + 1] then
    redis.call('ZADD', P .. 'running', until_ms, id)
    if was[3] then out[#out + 1] = { id, was[3] } end
  else
    out[#out + 1] = { id, 'lost' }
  end
end
return out
