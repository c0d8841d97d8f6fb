-- Writes the hot copy of a conversation whole.
-- KEYS[1]  the conversation's hash
-- KEYS[2]  the list of its newest messages
-- ARGV[1]  version
-- ARGV[2]  state and length
-- ARGV[3]  time to live in milliseconds
-- ARGV[4]  "newer": keep what is there if its version is not lower
--          "always": replace it, unless what is given was read before the
--          conversation was erased
-- ARGV[5..] the messages, oldest first
-- Returns  1 if written, 0 if what was there stays
local held = redis.call('HMGET', KEYS[1], 'v', 't')
if ARGV[4] ~= 'always' and held[1] and tonumber(held[1]) >= tonumber(ARGV[1]) then
  return 0
end
if held[2] and tonumber(ARGV[1]) < tonumber(held[2]) then
  return 0
end
redis.call('DEL', KEYS[2])
local bytes = 0
for i = 5, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[i])
  bytes = bytes + #ARGV[i]
end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'd', ARGV[2], 'b', bytes)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
