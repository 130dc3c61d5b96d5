-- instance, json, life_ms, (queue, slots)… An instance says that it lives and what it carries.
local now = now_ms()
redis.call('ZADD', P .. 'instances', int(now + tonumber(ARGV[3])), ARGV[1])
redis.call('SET', P .. 'instance:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
for i = 4, #ARGV, 2 do
  redis.call('SADD', P .. 'queues', ARGV[i])
  redis.call('HSET', P .. 'slots:' .. ARGV[i], ARGV[1], ARGV[i + 1])
  measure(ARGV[i], now)
end
return 1
