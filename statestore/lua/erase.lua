-- Leaves the tombstone of an erased conversation in place of its hot copy.
-- KEYS[1]  the conversation's hash
-- KEYS[2]  the list of its newest messages
-- ARGV[1]  version of the tombstone
-- ARGV[2]  id, lengths and state
-- ARGV[3]  time to live in milliseconds
-- ARGV[4]  how many bytes of ARGV[2] say whose copy it is
-- Returns  1 if written, 0 if the conversation has gone on since
-- What is no hash is an error here, a table without these.
local held = redis.pcall('HMGET', KEYS[1], 'v', 't', 'd')
if held.err or held[3] and string.sub(held[3], 1, tonumber(ARGV[4])) ~= string.sub(ARGV[2], 1, tonumber(ARGV[4])) then
  redis.call('DEL', KEYS[1])
  held = {}
end
local version = tonumber(held[1] or '')
local erased = tonumber(held[2] or '')
if not erased or erased < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 't', ARGV[1])
end
if version and version >= tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 0
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'd', ARGV[2], 'b', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
