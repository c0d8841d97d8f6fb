-- Takes back announcements of running turns.
-- KEYS[1]   the hash of a partition number's announcements
-- ARGV[1]   the incarnation that announced them
-- ARGV[2..] the turns
-- Returns   how many were taken back; what another incarnation has announced stays
local gone = 0
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then
    gone = gone + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return gone
