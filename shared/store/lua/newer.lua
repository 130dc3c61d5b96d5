-- '-inf' or '(' and a time (ms), name… -> how many entries of these lists are newer
local count = 0
for i = 2, #ARGV do count = count + redis.call('ZCOUNT', ARGV[i], ARGV[1], '+inf') end
return count
