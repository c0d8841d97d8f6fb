-- Moves the hot copy of a conversation from the version that a turn ran on to
-- the one that it has committed, by what the turn has added.
-- KEYS[1]  the conversation's hash
-- KEYS[2]  the list of its newest messages
-- ARGV[1]  the version that the turn ran on
-- ARGV[2]  the version that it has committed
-- ARGV[3]  id, lengths and state
-- ARGV[4]  time to live in milliseconds
-- ARGV[5]  how many bytes of ARGV[3] say whose copy it is
-- ARGV[6]  how many messages are kept at most
-- ARGV[7]  how many bytes of messages are kept at most
-- ARGV[8..] the messages that the turn has appended, oldest first
-- Returns  1 if moved, 0 if what was there is newer, -1 if the copy has to be
--          written whole
-- What is no hash is an error here, a table without these.
local held = redis.pcall('HMGET', KEYS[1], 'v', 'b', 'd')
if not held[3] or string.sub(held[3], 1, tonumber(ARGV[5])) ~= string.sub(ARGV[3], 1, tonumber(ARGV[5])) then
  return -1
end
local version = tonumber(held[1])
local bytes = tonumber(held[2])
-- One that is as new need not say the same: PostgreSQL may have been restored, and
-- have come to this version once more.
if version and version > tonumber(ARGV[2]) then
  return 0
end
if held[1] ~= ARGV[1] or not bytes then
  return -1
end
-- An evicted list would leave a gap before what is appended now.
if bytes > 0 and redis.call('EXISTS', KEYS[2]) == 0 then
  return -1
end
local count = 0
for i = 8, #ARGV do
  count = redis.pcall('RPUSH', KEYS[2], ARGV[i])
  if type(count) == 'table' then
    return -1 -- it is no list
  end
  bytes = bytes + #ARGV[i]
end
while count > tonumber(ARGV[6]) or bytes > tonumber(ARGV[7]) do
  local oldest = redis.call('LPOP', KEYS[2])
  if not oldest then
    break
  end
  count = count - 1
  bytes = bytes - #oldest
end
redis.call('HSET', KEYS[1], 'v', ARGV[2], 'd', ARGV[3], 'b', bytes)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
