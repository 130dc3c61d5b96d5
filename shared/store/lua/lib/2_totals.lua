-- What is counted of runs, for operators and for those who pay.

-- What operators count, by backend: kept here, so that it is right whatever processes there are. `le` are seconds,
-- as shared/tally.py has them.
local BUCKETS = { 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600 }

local function observe(what, backend, ms)
  local le = '+Inf'
  for _, bucket in ipairs(BUCKETS) do
    if ms <= bucket * 1000 then
      le = tostring(bucket)
      break
    end
  end
  redis.call('HINCRBY', P .. 'totals', what .. '|' .. backend .. '|' .. le, 1)
  redis.call('HINCRBY', P .. 'totals', what .. '_ms|' .. backend, int(math.max(ms, 0)))
end

local function count(queue, status, outcome, created, started, now)
  local backend = string.match(queue, '^[^@]+')
  local code = ''
  if status ~= 'succeeded' then code = string.match(outcome, '"failure":{"code":"([%w_]+)"') or 'unknown' end
  local cause = code ~= '' and string.match(outcome, '"cause":"([a-z_]+)"') or ''
  if #cause > 40 then cause = 'other' end
  redis.call('HINCRBY', P .. 'totals', 'ended|' .. backend .. '|' .. status .. '|' .. code .. '|' .. cause, 1)
  local cost = tonumber(string.match(outcome, '"cost_usd":([%d.eE+-]+)') or '')
  if cost then redis.call('HINCRBY', P .. 'totals', 'cost_microusd|' .. backend, int(cost * 1e6)) end
  if started then
    observe('wait', backend, tonumber(started) - tonumber(created))
    observe('took', backend, now - tonumber(started))
  end
  for _, kind in ipairs({ 'input', 'output', 'cached', 'reasoning' }) do
    local tokens = string.match(outcome, '"' .. kind .. '_tokens":(%d+)')
    if tokens and tokens ~= '0' then redis.call('HINCRBY', P .. 'totals', 'tokens|' .. backend .. '|' .. kind, tokens) end
  end
end

-- Runs, tokens, cost and time by day, for those who pay: a hash a tenant, its fields measure|key|backend|model.
local function charge(tenant, about, queue, status, outcome, started, now)
  local key, model = string.match(about or '', '^([^\n]*)\n[^\n]*\n(.*)$')
  model = string.match(outcome, '"model":"([^"]*)"') or model or ''
  if model == '' then model = 'default' end
  model = string.sub(string.gsub(model, '[%c\\]', '_'), 1, 100)
  local day = P .. 'usage:' .. int(math.floor(now / 86400000))
  local name, what = day .. ':' .. tenant, '|' .. (key or '') .. '|' .. string.match(queue, '^[^@]+') .. '|'
  if redis.call('HEXISTS', name, 'took_ms' .. what .. model) == 0 then
    if redis.call('HLEN', name) >= USAGE_KINDS * 4 then model = '(other)' end
    redis.call('SADD', day, tenant)
    redis.call('PEXPIRE', day, USAGE_MS)
  end
  redis.call('HINCRBY', name, status .. what .. model, 1)
  redis.call('HINCRBY', name, 'took_ms' .. what .. model, int(started and math.max(now - tonumber(started), 0) or 0))
  for _, kind in ipairs({ 'input', 'output', 'cached', 'reasoning' }) do
    local tokens = string.match(outcome, '"' .. kind .. '_tokens":(%d+)')
    if tokens and tokens ~= '0' then redis.call('HINCRBY', name, kind .. '_tokens' .. what .. model, tokens) end
  end
  local cost = tonumber(string.match(outcome, '"cost_usd":([%d.eE+-]+)') or '')
  if cost then redis.call('HINCRBY', name, 'cost_microusd' .. what .. model, int(cost * 1e6)) end
  redis.call('PEXPIRE', name, USAGE_MS)
end
