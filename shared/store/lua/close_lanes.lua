-- flow, (lane, failure as JSON)… -> 1. Lanes that get no run; the first word stands.
for i = 2, #ARGV, 2 do redis.call('HSETNX', P .. 'closed:' .. ARGV[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', P .. 'closed:' .. ARGV[1], int(RETENTION_MS + LONGEST_RUN_MS))
return 1
