-- Takes away what a dead incarnation has left under a partition number, and
-- counts its death against every turn that it had marked. Marks go in the same
-- instant, so that nobody counts them again.
-- KEYS[1]   the hash of the number's announcements
-- KEYS[2]   the hash of its marks: task -> "incarnation mode turn", mode being s
--           (other turns ran beside it) or a (it ran alone)
-- KEYS[3]   the hash of its tasks' past
-- ARGV[1]   the dead incarnation
-- ARGV[2]   how many deaths count of turns that did not run alone
-- ARGV[3]   time to live of a past, in milliseconds
-- Returns   task, deaths, task, deaths, … of those that had a death counted
local announced = redis.call('HGETALL', KEYS[1])
for i = 1, #announced, 2 do
  if announced[i + 1] == ARGV[1] then
    redis.call('HDEL', KEYS[1], announced[i])
  end
end
local counted = {}
local marked = redis.call('HGETALL', KEYS[2])
for i = 1, #marked, 2 do
  local task, mark = marked[i], marked[i + 1]
  if string.sub(mark, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then
    redis.call('HDEL', KEYS[2], task)
    local mode = string.sub(mark, #ARGV[1] + 2, #ARGV[1] + 2)
    local deaths = redis.call('HGET', KEYS[3], 'd:' .. task) or ''
    local _, shared = string.gsub(deaths, 's%S+', '')
    local new = not string.find(deaths, ARGV[1], 1, true)
    if new and (mode == 'a' or shared < tonumber(ARGV[2])) then
      deaths = deaths .. mode .. ARGV[1] .. ' '
      redis.call('HSET', KEYS[3], 'd:' .. task, deaths)
      counted[#counted + 1] = task
      counted[#counted + 1] = deaths
    end
  end
end
if #counted > 0 then
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
end
return counted
