-- Hands tasks to the caller: first what was given back or lost, then what is new. They are its own until it ends them,
-- gives them back, or is not heard of for so long that others take it for dead.
--
-- ARGV  1 instance id of the caller   2 most tasks   3 and on: operations, the one that may choose first at first
-- Answers {last sound of the bell, how many tasks the group has, seconds, microseconds, then for each task {operation,
-- entry, how often it was given out, its fields, its owner}}.
local time = redis.call('TIME')
forget_what_has_ended(time)
local me, left, taken = ARGV[1], tonumber(ARGV[2]), {}

local function give(operation, entry, deliveries)
  local _, owner = find(entry[2][2])  -- its first field is the name
  taken[#taken + 1] = {operation, entry[1], deliveries, entry[2], owner or ''}
  left = left - 1
end

for argument = 3, #ARGV do
  local operation = ARGV[argument]
  local stream = stream_of(operation)
  if left > 0 and redis.call('EXISTS', stream) == 1 then
    for _, pending in ipairs(redis.call('XPENDING', stream, READERS, '-', '+', left, RELEASED)) do
      for _, entry in ipairs(redis.call('XCLAIM', stream, READERS, me, 0, pending[1])) do
        if entry then give(operation, entry, pending[4] + 1) end  -- else somebody has deleted it by hand
      end
    end
    local new = left > 0 and redis.call('XREADGROUP', 'GROUP', READERS, me, 'COUNT', left, 'STREAMS', stream, '>')
    if new then
      for _, entry in ipairs(new[1][2]) do give(operation, entry, 1) end
    end
  end
end

local sounds = redis.call('XREVRANGE', BELL, '+', '-', 'COUNT', 1)
return {sounds[1] and sounds[1][1] or '0-0', redis.call('ZCARD', ENDS), time[1], time[2], unpack(taken)}
