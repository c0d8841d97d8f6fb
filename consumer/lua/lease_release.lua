-- Gives the lease of a turn back.
-- KEYS[1]  the lease (see lease_take.lua)
-- ARGV[1]  the turn, pool/incarnation/number
-- ARGV[2]  how long the hash outlives its last change
-- Returns  1, or 0 when another turn has it
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then
  return 0
end
redis.call('HDEL', KEYS[1], 'holder', 'until')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
