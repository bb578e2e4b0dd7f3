-- Keeps leases of the caller alive, or gives them back to be taken by whoever comes.
--
-- ARGV  1 instance id of the caller   2 "keep", "release" (it was tried), or "untried" (it was not: costs no attempt)
--       3 and on: of each lease the operation, the entry, and how often it was given out
-- Answers the numbers, from 1, of those that are not the caller's any more: nothing was done about them.
local me, what, gone = ARGV[1], ARGV[2], {}
forget_what_has_ended(redis.call('TIME'))

for argument = 3, #ARGV, 3 do
  local operation, entry, deliveries = ARGV[argument], ARGV[argument + 1], tonumber(ARGV[argument + 2])
  local holder, given = holder_of(operation, entry)
  local stream = stream_of(operation)
  if holder ~= me or given ~= deliveries then
    gone[#gone + 1] = (argument - 3) / 3 + 1
  elseif what == 'keep' then
    redis.call('XCLAIM', stream, READERS, me, 0, entry, 'JUSTID')
  elseif what == 'release' then
    redis.call('XCLAIM', stream, READERS, RELEASED, 0, entry, 'JUSTID')
  else
    redis.call('XCLAIM', stream, READERS, RELEASED, 0, entry, 'RETRYCOUNT', deliveries - 1, 'JUSTID')
  end
end

if what ~= 'keep' and #gone < (#ARGV - 2) / 3 then ring() end
return gone
