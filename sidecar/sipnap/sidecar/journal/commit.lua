-- Keeps additions and forgets ends of one front end, if the caller still owns it.
--
-- KEYS  1 owner (hash)   2 naps (hash)
-- ARGV  1 token of the caller   2 number of this write, growing   3 number of the last write that the caller had
--       confirmed   4 milliseconds to keep the owner   5 when the naps may be dropped, milliseconds since 1970
--       6 how many ends follow; then their fields; then field and value of each addition
-- Answers {word, seconds, microseconds, owner}: Redis's time of day, and who owns the front end.
--   DONE       it is written
--   FENCED     another sidecar owns the front end
--   NOBODY     Redis knows of no owner: it has lost its data
--   BEHIND     Redis has forgotten writes that it had confirmed: it came back with older data
--   OVERTAKEN  a later write came first: this one was given up long ago
local time = redis.call('TIME')
local owner = redis.call('HMGET', KEYS[1], 'token', 'write', 'until', 'name')
local write, confirmed, first_addition = tonumber(ARGV[2]), tonumber(ARGV[3]), 7 + tonumber(ARGV[6])

local function answer(word)
  return {word, time[1], time[2], owner[4] or ''}
end

if not owner[1] then return answer('NOBODY') end
if owner[1] ~= ARGV[1] then return answer('FENCED') end
if tonumber(owner[2]) >= write then return answer('OVERTAKEN') end
if tonumber(owner[2]) < confirmed then return answer('BEHIND') end

-- A Redis that is out of memory refuses HSET as the first write of a script, and lets it pass after any other. So with
-- additions, or nothing to do at all, HSET comes first and fails before anything has changed; ends alone get through.
if first_addition <= #ARGV or first_addition == 7 then
  redis.call('HSET', KEYS[1], 'write', ARGV[2])
end
for index = 7, first_addition - 1 do
  redis.call('HDEL', KEYS[2], ARGV[index])
end
redis.call('HSET', KEYS[1], 'write', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if first_addition <= #ARGV then
  for index = first_addition, #ARGV, 2 do
    redis.call('HSET', KEYS[2], ARGV[index], ARGV[index + 1])
  end
  local keep_until = math.max(tonumber(ARGV[5]), tonumber(owner[3] or 0))
  redis.call('HSET', KEYS[1], 'until', string.format('%.0f', keep_until))
  redis.call('PEXPIREAT', KEYS[2], string.format('%.0f', keep_until))
end
return answer('DONE')
