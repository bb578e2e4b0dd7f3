-- Makes the caller the owner of one front end; whoever was before is fenced from now on.
--
-- KEYS  1 owner (hash)   2 naps (hash)
-- ARGV  1 a word that no other claim has   2 instance id of the caller   3 its name for people   4 version of the layout
--       that it writes   5 milliseconds to keep the owner   6 "1": only if there is no owner
-- Answers {word, seconds, microseconds, token or version, how many naps there are, name of the owner before, its instance}.
--   DONE    the caller owns it
--   NEWER   the front end's naps have the layout of a newer sipnap
--   FENCED  there is an owner, and the caller wanted none
local time = redis.call('TIME')
local owner = redis.call('HMGET', KEYS[1], 'token', 'schema', 'name', 'instance')

if owner[2] and tonumber(owner[2]) > tonumber(ARGV[4]) then
  return {'NEWER', time[1], time[2], owner[2], 0, owner[3], owner[4]}
end
if owner[1] and ARGV[6] == '1' then
  return {'FENCED', time[1], time[2], '', 0, owner[3], owner[4]}
end

-- As the first write, so that a Redis that is out of memory lets the next one pass: what is held has to fire also then.
redis.call('PERSIST', KEYS[1])
-- The number alone would begin anew when Redis has lost its data; a token must never come twice.
local token = redis.call('HINCRBY', KEYS[1], 'number', 1) .. '-' .. ARGV[1]
redis.call('HSET', KEYS[1], 'token', token, 'write', 0, 'instance', ARGV[2], 'name', ARGV[3], 'schema', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {'DONE', time[1], time[2], token, redis.call('HLEN', KEYS[2]), owner[3] or '', owner[4] or ''}
