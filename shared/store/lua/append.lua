-- (id, token, first sequence, count, event…)… -> ids whose attempt is no longer theirs
local lost, mail = {}, {}
local i = 1
while i <= #ARGV do
  local id, token, first, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local was = record(id, 'status', 'token', 'seq', 'group', 'lane')
  if was[1] == 'running' and was[2] == token then
    append(id, was[4], was[5], tonumber(was[3] or '0'), first, i + 4, count, mail)
  else
    lost[#lost + 1] = id
  end
  i = i + 4 + count
end
deliver(mail)
return lost
