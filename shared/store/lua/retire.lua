-- instance: it has ended in good order.
redis.call('ZREM', P .. 'instances', ARGV[1])
redis.call('DEL', P .. 'instance:' .. ARGV[1])
local now = now_ms()
for _, queue in ipairs(redis.call('SMEMBERS', P .. 'queues')) do
  if redis.call('HDEL', P .. 'slots:' .. queue, ARGV[1]) == 1 then measure(queue, now) end
end
return 1
