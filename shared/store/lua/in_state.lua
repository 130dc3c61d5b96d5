-- status, id… -> the places, from 1, of those runs or flows that are in it
local found = {}
for i = 2, #ARGV do
  if redis.call('HGET', P .. 'run:' .. ARGV[i], 'status') == ARGV[1] then found[#found + 1] = i - 1 end
end
return found
