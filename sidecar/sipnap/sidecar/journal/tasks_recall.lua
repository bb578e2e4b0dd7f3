-- Gives back what the caller has and does not know of: the answer that gave it was lost. It costs no attempt.
--
-- ARGV  1 instance id of the caller   2 how many operations follow; then the operations; then all that the caller knows
--       of: operation and entry of each
-- Answers how many tasks were given back.
local me, operations, known, count = ARGV[1], tonumber(ARGV[2]), {}, 0

for argument = 3 + operations, #ARGV, 2 do
  known[ARGV[argument + 1] .. ' ' .. ARGV[argument]] = true
end

for argument = 3, 2 + operations do
  local operation = ARGV[argument]
  local stream = stream_of(operation)
  if redis.call('EXISTS', stream) == 1 then
    local start = '-'
    repeat
      local page = redis.call('XPENDING', stream, READERS, start, '+', 100, me)
      for _, pending in ipairs(page) do
        if not known[pending[1] .. ' ' .. operation] then
          redis.call('XCLAIM', stream, READERS, RELEASED, 0, pending[1], 'RETRYCOUNT', pending[4] - 1, 'JUSTID')
          count = count + 1
        end
        start = '(' .. pending[1]
      end
    until #page < 100
  end
end

if count > 0 then ring() end
return count
