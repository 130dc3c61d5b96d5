-- tenant, backend ('' for any), status ('' for any), offset, limit -> {total, {id, field, value…}…}; the last used first
local name = P .. 'sessions:' .. ARGV[1]
if ARGV[2] ~= '' or ARGV[3] ~= '' then name = name .. '|' .. ARGV[2] .. '|' .. ARGV[3] end
local found = {}
for i, id in ipairs(redis.call('ZREVRANGE', name, ARGV[4], ARGV[4] + ARGV[5] - 1)) do
  local fields = redis.call('HGETALL', P .. 'session:' .. id)
  table.insert(fields, 1, id)
  found[i] = fields
end
return { redis.call('ZCARD', name), found }
