-- Queues tasks, each once, however often it is put.
--
-- ARGV  1 instance id of the caller, who owns their front ends   2 milliseconds to keep the keys beyond the last end;
--       then of each task its name, operation, end in milliseconds since 1970, number of its first attempt, most
--       attempts, and body
-- Answers {how many tasks the group has, how many of these it had already}. Of those nothing changes, but that the caller
-- is their owner now.
forget_what_has_ended(redis.call('TIME'))
local had, streams = 0, {}

for argument = 3, #ARGV, 6 do
  local name, operation, ends = ARGV[argument], ARGV[argument + 1], ARGV[argument + 2]
  local entry = find(name)
  if entry then
    redis.call('HSET', INDEX, name, entry .. ' ' .. ARGV[1] .. ' ' .. operation)
    had = had + 1
  else
    local stream = stream_of(operation)
    if redis.call('EXISTS', stream) == 0 then
      redis.call('XGROUP', 'CREATE', stream, READERS, '0', 'MKSTREAM')
    end
    entry = redis.call('XADD', stream, '*', 'name', name, 'end', ends, 'attempt', ARGV[argument + 3],
      'most', ARGV[argument + 4], 'body', ARGV[argument + 5])
    redis.call('HSET', INDEX, name, entry .. ' ' .. ARGV[1] .. ' ' .. operation)
    redis.call('ZADD', ENDS, ends, name)
    streams[stream] = true
  end
end

if next(streams) then
  ring()
  local last = redis.call('ZREVRANGE', ENDS, 0, 0, 'WITHSCORES')[2]
  local keep_until = string.format('%.0f', tonumber(last) + tonumber(ARGV[2]))
  for stream in pairs(streams) do redis.call('PEXPIREAT', stream, keep_until) end
  for _, key in ipairs({INDEX, ENDS, BELL}) do redis.call('PEXPIREAT', key, keep_until) end
end
return {redis.call('ZCARD', ENDS), had}
