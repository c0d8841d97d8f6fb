-- Takes back the marks of turns that have ended in a worker that lives. Where its
-- death was counted meanwhile (it stood still so long that it passed for dead),
-- that is taken back too.
-- KEYS[1]   the hash of a partition number's marks
-- KEYS[2]   the hash of its tasks' past
-- ARGV[1]   the incarnation that marked them
-- ARGV[2..] the tasks
-- Returns   how many deaths were taken back
local cleared = 0
for i = 2, #ARGV do
  local mark = redis.call('HGET', KEYS[1], ARGV[i])
  if mark and string.sub(mark, 1, #ARGV[1] + 1) == ARGV[1] .. ' ' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
  local deaths = redis.call('HGET', KEYS[2], 'd:' .. ARGV[i])
  local at = deaths and string.find(deaths, ARGV[1], 1, true)
  if at then
    local rest = string.sub(deaths, 1, at - 2) .. string.sub(deaths, at + #ARGV[1] + 1)
    cleared = cleared + 1
    if rest == '' then
      redis.call('HDEL', KEYS[2], 'd:' .. ARGV[i])
    else
      redis.call('HSET', KEYS[2], 'd:' .. ARGV[i], rest)
    end
  end
end
return cleared
