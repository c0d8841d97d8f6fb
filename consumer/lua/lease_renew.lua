-- Renews the lease of a turn that runs, and takes it again when it has lapsed.
-- KEYS[1]  the lease (see lease_take.lua)
-- ARGV[1]  the turn, pool/incarnation/number
-- ARGV[2]  how long a lease lasts, in milliseconds
-- ARGV[3]  how long the hash outlives its last change
-- Returns  1, or 0 when another turn has it
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local f = redis.call('HMGET', KEYS[1], 'holder', 'until')
if f[1] and f[1] ~= ARGV[1] and tonumber(f[2]) > now then
  return 0
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', now + ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
