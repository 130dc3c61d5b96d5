-- flow, how many of its runs had ended when it was looked at -> 1 where nothing has ended since
-- The flow is due no more, unless another run has ended meanwhile.
if redis.call('HGET', P .. 'run:' .. ARGV[1], 'ends') == ARGV[2] then
  redis.call('ZREM', P .. 'due', ARGV[1])
  return 1
end
return 0
