-- Freezes an account's model for a time. A freeze that lasts longer stands.
--
-- KEYS[1]   until when the account's model is frozen, ms
--
-- ARGV[1]   how long from now, ms
--
-- Returns   until when the model is frozen, ms

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local upto = now + tonumber(ARGV[1])
local frozen = redis.call('GET', KEYS[1])
if frozen and tonumber(frozen) >= upto then
  return tonumber(frozen)
end
redis.call('SET', KEYS[1], string.format('%d', upto), 'PX', upto - now)
return upto
