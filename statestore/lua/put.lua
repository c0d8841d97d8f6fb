-- Writes the hot copy of a conversation whole.
-- KEYS[1]  the conversation's hash
-- KEYS[2]  the list of its newest messages
-- ARGV[1]  version
-- ARGV[2]  id, lengths and state
-- ARGV[3]  time to live in milliseconds
-- ARGV[4]  how many bytes of ARGV[2] say whose copy it is
-- ARGV[5]  "newer": keep what is there if its version is higher
--          "always": replace it, unless what is given was read before the
--          conversation was erased
-- ARGV[6..] the messages, oldest first
-- Returns  1 if written, 0 if what was there stays
-- What is no hash is an error here, a table without these.
local held = redis.pcall('HMGET', KEYS[1], 'v', 't', 'd')
if held.err or held[3] and string.sub(held[3], 1, tonumber(ARGV[4])) ~= string.sub(ARGV[2], 1, tonumber(ARGV[4])) then
  redis.call('DEL', KEYS[1]) -- no copy of this conversation, so neither is its tombstone
  held = {}
end
local version = tonumber(held[1] or '')
local erased = tonumber(held[2] or '')
if ARGV[5] ~= 'always' and version and version > tonumber(ARGV[1]) then
  return 0
end
if erased and erased > tonumber(ARGV[1]) then
  return 0
end
redis.call('DEL', KEYS[2])
local bytes = 0
for i = 6, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[i])
  bytes = bytes + #ARGV[i]
end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'd', ARGV[2], 'b', bytes)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
