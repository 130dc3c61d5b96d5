-- What every script shares stands in this folder. All of it is put before each script, in the order of the files'
-- numbers, since Lua knows a local only after its line. @…@ is filled in once, at load.
-- Names: see shared/names.py. All times are milliseconds by Redis' own clock, so that no host's clock matters.

local P = 'clinvk:'
local LEASE_MS = @LEASE_MS@
local RETENTION_MS = @RETENTION_MS@
local MAX_EVENTS = @MAX_EVENTS@
local MAX_FLOW_EVENTS = @MAX_FLOW_EVENTS@
local SESSION_MS = @SESSION_MS@
local USAGE_MS = @USAGE_MS@
local USAGE_KINDS = 500  -- of key, backend and model of a tenant on a day; model names are the callers' words
local LONGEST_RUN_MS = 7 * 86400000  -- for the lists of runs; a record lives on in any case
local TEMPLATE = [==[@TEMPLATE@]==]

local function int(n) return string.format('%.0f', n) end

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function final(status)
  return status == 'succeeded' or status == 'failed' or status == 'cancelled'
end

-- Fields of a run's record, among those of others: what is not a record has none of them, and the others go on.
local function record(id, ...)
  local was = redis.pcall('HMGET', P .. 'run:' .. id, ...)
  return was.err and {} or was
end

local function is_flow(group) return group and string.sub(group, 1, 5) == 'flow_' end
