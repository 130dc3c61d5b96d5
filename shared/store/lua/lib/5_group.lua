-- Sessions and flows: their lists, hosts, turns, and what is to be removed of them.

-- The sessions of a tenant are listed by last use: all, by backend, by status, by both.
local function index_session(id, tenant, backend, before, status, at)
  local all = P .. 'sessions:' .. tenant
  if before and before ~= status then
    redis.call('ZREM', all .. '||' .. before, id)
    redis.call('ZREM', all .. '|' .. backend .. '|' .. before, id)
  end
  for _, name in ipairs({ '', '|' .. backend .. '|', '||' .. status, '|' .. backend .. '|' .. status }) do
    redis.call('ZADD', all .. name, int(at), id)
  end
  redis.call('ZADD', P .. 'sessions', int(at), id)
  redis.call('ZADD', P .. 'sessionids:' .. tenant, 0, id)
end

-- What a run's end means for its session. A run that never began has no turn.
local function close_turn(id, session, status, outcome, now)
  local head = P .. 'session:' .. session
  local was = redis.call('HMGET', head, 'tenant', 'backend', 'status', 'run')
  if not was[1] then return end
  local told = cjson.decode(outcome)
  if type(told.backend_session_id) == 'string' then redis.call('HSET', head, 'cli_id', told.backend_session_id) end
  if type(told.model) == 'string' then redis.call('HSET', head, 'model', told.model) end
  if type(told.usage) == 'table' then
    for _, name in ipairs({ 'input_tokens', 'output_tokens', 'cached_tokens', 'reasoning_tokens' }) do
      redis.call('HINCRBY', head, name, int(tonumber(told.usage[name]) or 0))
    end
  end
  local attempts = tonumber(redis.call('HGET', P .. 'run:' .. id, 'attempt') or '0')
  if attempts > 0 then redis.call('HINCRBY', head, 'turn_count', 1) end
  local stands = 'error'
  if status == 'succeeded' then stands = 'completed' elseif status == 'cancelled' then stands = 'cancelled' end
  -- Another turn that waits keeps it active.
  if redis.call('LLEN', P .. 'line:group:' .. session) + redis.call('SCARD', P .. 'held:group:' .. session) > 0 then
    stands = 'active'
  end
  redis.call('HSET', head, 'status', stands, 'last_used', int(now))
  index_session(session, was[1], was[2], was[3], stands, now)
end

-- What a host is to remove, whenever it comes back within the time that sessions are kept.
local function add_chore(host, chore)
  redis.call('LPUSH', P .. 'chores:' .. host, cjson.encode(chore))
  redis.call('PEXPIRE', P .. 'chores:' .. host, SESSION_MS)
end

-- What begins anew needs no directory and no session of the CLI's of before: another host may have it. The one that it
-- leaves is remembered (a line each, "host cli_id"), since what lies there is still to be removed.
local function begin_anew(group)
  local begun
  if is_flow(group) then
    begun = redis.call('HGET', P .. 'run:' .. group, 'ends')
  else
    begun = redis.call('HGET', P .. 'session:' .. group, 'turn_count')
  end
  local g = redis.call('HMGET', P .. 'group:' .. group, 'host', 'was_on')
  if begun ~= '0' or not g[1] then return end
  local cli_id = redis.call('HGET', P .. 'session:' .. group, 'cli_id') or ''
  redis.call('HSET', P .. 'group:' .. group, 'was_on', (g[2] or '') .. g[1] .. ' ' .. cli_id .. '\n')
  redis.call('HDEL', P .. 'group:' .. group, 'host')
  if not is_flow(group) then redis.call('HDEL', P .. 'session:' .. group, 'host', 'cli_id') end
end

-- The hosts that a group has left, with the CLI's own id of a session there, or ''.
local function were_on(group)
  return string.gmatch(redis.call('HGET', P .. 'group:' .. group, 'was_on') or '', '([^ \n]+) ([^\n]*)\n')
end
