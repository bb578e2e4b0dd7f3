-- Tells Redis's time of day, and finds out whether it would take something.
--
-- KEYS  1 a key of no importance
-- ARGV  1 "1": write it
-- Answers {seconds, microseconds}.
if ARGV[1] == '1' then
  redis.call('SET', KEYS[1], '1', 'PX', 60000)
end
return redis.call('TIME')
