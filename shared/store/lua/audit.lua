-- entry as JSON, most entries, retention_ms -> its id. Who did what to whose; in order, bounded by number and by age.
local now = now_ms()
local id = redis.call('XADD', P .. 'audit', 'MAXLEN', '~', ARGV[2], '*', 'e', ARGV[1])
redis.call('XTRIM', P .. 'audit', 'MINID', '~', int(math.max(now - tonumber(ARGV[3]), 0)))
redis.call('PEXPIRE', P .. 'audit', ARGV[3])
return id
