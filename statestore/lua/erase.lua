-- Leaves the tombstone of an erased conversation in place of its hot copy.
-- KEYS[1]  the conversation's hash
-- KEYS[2]  the list of its newest messages
-- ARGV[1]  version of the tombstone
-- ARGV[2]  state and length
-- ARGV[3]  time to live in milliseconds
-- Returns  1 if written, 0 if the conversation has gone on since
local erased = redis.call('HGET', KEYS[1], 't')
if not erased or tonumber(erased) < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 't', ARGV[1])
end
local held = redis.call('HGET', KEYS[1], 'v')
if held and tonumber(held) >= tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'd', ARGV[2], 'b', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
