-- Ends tasks: they have a result, or nobody waits for them any more.
--
-- ARGV  1 "finish" or "drop"   2 instance id of the caller, whose they have to be; empty: whoever's they are; then
--       to finish, of each task its name, entry, and who has it, for the how-manieth time
--       to drop, of each task its name
-- Answers a word for each task; to finish
--   DONE     it was so, and it is gone now
--   GONE     there is no such task
--   STALE    somebody else has the task meanwhile, or another task has this name: nothing was done
--   FOREIGN  it is not the caller's to end: nothing was done
-- and to drop the instance id of the sidecar that has it, empty if none has or it is not the caller's to end.
local answer = {}

if ARGV[1] == 'finish' then
  for argument = 3, #ARGV, 4 do
    local name, entry = ARGV[argument], ARGV[argument + 1]
    local present, owner, operation = find(name)
    local word = 'STALE'
    if not present then
      word = 'GONE'
    elseif ARGV[2] ~= '' and ARGV[2] ~= owner then
      word = 'FOREIGN'
    elseif present == entry then
      local holder, given = holder_of(operation, entry)
      if holder == ARGV[argument + 2] and given == tonumber(ARGV[argument + 3]) then
        forget(name, operation, entry)
        word = 'DONE'
      end
    end
    answer[#answer + 1] = word
  end
else
  for argument = 3, #ARGV do
    local name = ARGV[argument]
    local entry, owner, operation = find(name)
    local holder
    if entry and (ARGV[2] == '' or ARGV[2] == owner) then
      holder = holder_of(operation, entry)
      forget(name, operation, entry)
    end
    answer[#answer + 1] = holder ~= RELEASED and holder or ''
  end
end
return answer
