-- Writes the hot copy of a conversation.
-- KEYS[1]  the conversation's hash
-- ARGV[1]  version
-- ARGV[2]  document
-- ARGV[3]  time to live in milliseconds
-- ARGV[4]  "newer": keep what is there if its version is not lower
--          "always": replace it
-- Returns  1 if written, 0 if what was there stays
if ARGV[4] ~= 'always' then
  local held = redis.call('HGET', KEYS[1], 'v')
  if held and tonumber(held) >= tonumber(ARGV[1]) then
    return 0
  end
end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'd', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
