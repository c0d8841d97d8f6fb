-- Takes the lease of a conversation, or looks whether it could be taken.
-- KEYS[1]  the lease: a hash of
--            holder, until  the turn that has it, and when that lapses
--            next, place    who is next to have it, and when that lapses
--            last           who took it last
-- ARGV[1]  who asks: pool/incarnation
-- ARGV[2]  the turn that it is for, pool/incarnation/number; '' only looks
-- ARGV[3]  how long a lease lasts, in milliseconds
-- ARGV[4]  how long a place lasts
-- ARGV[5]  how long the hash outlives its last change
-- Returns  {1, last}: it was taken, or could be; last is '' when it is not known
--          {0, by}: the turn that has it, or who is next; the place behind it is
--          the asker's, unless somebody else has that
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local f = redis.call('HMGET', KEYS[1], 'holder', 'until', 'next', 'place', 'last')
local holder = f[1] and tonumber(f[2]) > now and f[1]
local heir = f[3] and tonumber(f[4]) > now and f[3]
local mine = ARGV[1] .. '/'
-- What the asker has itself belongs to a turn of its own that has ended: it is
-- given back in a moment.
if holder and string.sub(holder, 1, #mine) == mine then
  holder = false
end
local by = holder or (heir and heir ~= ARGV[1] and heir)
if by or ARGV[2] == '' then
  if not heir or heir == ARGV[1] then
    redis.call('HSET', KEYS[1], 'next', ARGV[1], 'place', now + ARGV[4])
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
  end
  if by then
    return {0, by}
  end
  return {1, f[5] or ''}
end
redis.call('HSET', KEYS[1], 'holder', ARGV[2], 'until', now + ARGV[3], 'last', ARGV[1])
redis.call('HDEL', KEYS[1], 'next', 'place')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return {1, f[5] or ''}
