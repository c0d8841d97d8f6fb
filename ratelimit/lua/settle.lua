-- Ends a grant: corrects its charges in the cell of its grant and gives its
-- concurrency back. Ending it again changes nothing.
--
-- KEYS[1]   grants not yet ended: sorted set of grant ids by end of lease, ms
-- KEYS[2..] buckets of the grant
--
-- ARGV[1]   grant id
-- ARGV[2]   time of the grant, ms
-- ARGV[3]   width of a cell, ms
-- ARGV[4..] per bucket: kind (rate or held), what the charge changes by, limit
--
-- Returns   1 if the grant was ended by this call, 0 if it had ended or lapsed

local MINUTE = 60000

local id = ARGV[1]
local cell = math.floor(tonumber(ARGV[2]) / tonumber(ARGV[3]))
local ended = redis.call('ZREM', KEYS[1], id)

for b = 1, #KEYS - 1 do
  local key = KEYS[b + 1]
  local a = 4 + (b - 1) * 3
  if ARGV[a] == 'held' then
    redis.call('ZREM', key, id)
  else
    local change, limit = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    if ended == 1 and change ~= 0 then
      local v = redis.call('HMGET', key, 'sum', 'tail', 'tat')
      -- A cell before the tail has aged out and no longer counts.
      if v[1] and tonumber(v[2]) <= cell then
        redis.call('HINCRBY', key, string.format('%d', cell), change)
        redis.call('HSET', key,
          'sum', string.format('%d', tonumber(v[1]) + change),
          'tat', string.format('%.3f', tonumber(v[3]) + change * MINUTE / limit))
      end
    end
  end
end
return ended
