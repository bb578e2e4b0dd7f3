-- What the scripts about remote tasks share; stands before each of them. A group of workers has
--
-- KEYS  1 index (hash): name of each task to "ENTRY OWNER OPERATION"   2 ends (sorted set): name of each task, with the
--       milliseconds since 1970 after which nobody waits for it   3 bell (stream): rung when there is something to take
--
-- and beside them, in the same slot, a stream of tasks for each operation, which all sidecars read as one consumer group.
-- A task that was taken and given back, or whose sidecar is lost, is pending for a consumer that nobody is: RELEASED.
local INDEX, ENDS, BELL = KEYS[1], KEYS[2], KEYS[3]
local READERS, RELEASED = 'sidecars', 'released'

local function stream_of(operation)
  return string.sub(INDEX, 1, -6) .. 'tasks:' .. operation
end

local function find(name)
  local entry = redis.call('HGET', INDEX, name)
  if entry then return string.match(entry, '^(%S+) (%S+) (.*)$') end
end

-- Who has it, and how often it was given out; nil: nobody yet.
local function holder_of(operation, entry)
  local stream = stream_of(operation)
  if redis.call('EXISTS', stream) == 0 then return nil end
  local pending = redis.call('XPENDING', stream, READERS, entry, entry, 1)[1]
  if pending then return pending[2], pending[4] end
end

local function forget(name, operation, entry)
  local stream = stream_of(operation)
  if redis.call('EXISTS', stream) == 1 then
    redis.call('XACK', stream, READERS, entry)
    redis.call('XDEL', stream, entry)
  end
  redis.call('HDEL', INDEX, name)
  redis.call('ZREM', ENDS, name)
end

local function forget_what_has_ended(time)
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', ENDS, '-inf', string.format('%.0f', now), 'LIMIT', 0, 1000)) do
    local entry, _, operation = find(name)
    if entry then forget(name, operation, entry) else redis.call('ZREM', ENDS, name) end
  end
end

local function ring()
  redis.call('XADD', BELL, 'MAXLEN', 1, '*', 'for', 'tasks')
end
