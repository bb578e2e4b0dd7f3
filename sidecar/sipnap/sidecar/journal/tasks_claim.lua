-- Takes tasks from sidecars that have not kept their leases: whoever comes may take them again. Each costs an attempt.
--
-- ARGV  1 milliseconds after which a lease that was not kept is lost   2 milliseconds after which a consumer that has
--       nothing is forgotten   3 and on: operations
-- Answers {how many were taken, from whom}.
local lease_ms, forget_ms = ARGV[1], tonumber(ARGV[2])
local count, from = 0, {}

for argument = 3, #ARGV do
  local stream = stream_of(ARGV[argument])
  if redis.call('EXISTS', stream) == 1 then
    local start = '-'
    repeat
      local page = redis.call('XPENDING', stream, READERS, 'IDLE', lease_ms, start, '+', 100)
      for _, pending in ipairs(page) do
        if pending[2] ~= RELEASED then
          redis.call('XCLAIM', stream, READERS, RELEASED, 0, pending[1], 'JUSTID')
          count = count + 1
          from[pending[2]] = true
        end
        start = '(' .. pending[1]
      end
    until #page < 100
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, READERS)) do
      if consumer[2] ~= RELEASED and consumer[4] == 0 and consumer[6] > forget_ms then
        redis.call('XGROUP', 'DELCONSUMER', stream, READERS, consumer[2])
      end
    end
  end
end

if count > 0 then ring() end
local names = {}
for name in pairs(from) do names[#names + 1] = name end
return {count, unpack(names)}
