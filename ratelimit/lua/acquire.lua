-- Decides on one request in all its buckets at once: charges all or none.
--
-- KEYS[1]   generation of the account's ledgers: when they began, ms
-- KEYS[2]   until when the account's model is frozen, ms
-- KEYS[3]   grants not yet ended: sorted set of grant ids by end of lease, ms
-- KEYS[4..] buckets: a hash each for a rate, a sorted set each for concurrency
--
-- ARGV[1]   grant id
-- ARGV[2]   lease, ms
-- ARGV[3]   window with its guard, ms
-- ARGV[4]   width of a cell, ms
-- ARGV[5]   when to ask again for concurrency, ms
-- ARGV[6..] per bucket: kind (rate or held), charge, limit, burst in ms
--
-- Returns   {1, granted at} or {0, now, retry at, blocker}, all times in ms;
--           blocker: number of the bucket, 0 for a freeze, -1 for lost ledgers
--
-- A rate's hash: sum (of all cells), tail (first cell that may be live), head
-- (last cell charged), tat (theoretical arrival time of the pace, ms), and one
-- field for each charged cell, named by its number.

local MINUTE = 60000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local id = ARGV[1]
local lease = tonumber(ARGV[2])
local window = tonumber(ARGV[3])
local width = tonumber(ARGV[4])
local again = tonumber(ARGV[5])

local function int(n) return string.format('%d', n) end

-- The reply to an earlier call with this id was lost: it stands.
local lease_end = redis.call('ZSCORE', KEYS[3], id)
if lease_end then
  return {1, tonumber(lease_end) - lease}
end

local generation = redis.call('GET', KEYS[1])
if not generation then
  generation = int(now)
  redis.call('SET', KEYS[1], generation)
end
generation = tonumber(generation)

local retry, blocker = 0, 0
local function refuse(at, by)
  if at > retry then
    retry, blocker = at, by
  end
end

local frozen = redis.call('GET', KEYS[2])
if frozen and tonumber(frozen) > now then
  refuse(tonumber(frozen), 0)
end

-- Takes the cells that are no longer live out of a rate's sum.
local function advance(key, rate, first)
  if rate.tail >= first then
    return
  end
  if rate.head < first then
    redis.call('DEL', key)
    rate.sum = 0
  else
    local c = rate.tail
    while c < first do
      local names = {}
      for i = c, math.min(c + 99, first - 1) do
        names[#names + 1] = int(i)
      end
      local charges = redis.call('HMGET', key, unpack(names))
      local gone = {}
      for i = 1, #names do
        if charges[i] then
          rate.sum = rate.sum - tonumber(charges[i])
          gone[#gone + 1] = names[i]
        end
      end
      if #gone > 0 then
        redis.call('HDEL', key, unpack(gone))
      end
      c = c + 100
    end
    redis.call('HSET', key, 'sum', int(rate.sum), 'tail', int(first))
  end
  rate.tail = first
end

-- When enough of a rate's cells have aged out to free the charge it lacks.
local function freed_at(key, rate, lacking)
  local c = rate.tail
  while c <= rate.head do
    local names = {}
    for i = c, math.min(c + 99, rate.head) do
      names[#names + 1] = int(i)
    end
    local charges = redis.call('HMGET', key, unpack(names))
    for i = 1, #names do
      if charges[i] then
        lacking = lacking - tonumber(charges[i])
        if lacking <= 0 then
          return (c + i) * width + window
        end
      end
    end
    c = c + 100
  end
  return now + window
end

local cell = math.floor(now / width)
-- Cell c is dead when (c + 1) * width <= now - window.
local first = math.floor((now - window) / width)
local rates = {}

for b = 1, #KEYS - 3 do
  local key = KEYS[b + 3]
  local a = 6 + (b - 1) * 4
  local charge, limit, burst = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  if ARGV[a] == 'held' then
    if generation + lease > now then
      refuse(generation + lease, -1)
    end
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    if redis.call('ZCARD', key) + charge > limit then
      refuse(now + again, b)
    end
  else
    if generation + window > now then
      refuse(generation + window, -1)
    end
    local v = redis.call('HMGET', key, 'sum', 'tail', 'head', 'tat')
    local rate = {
      sum = v[1] and tonumber(v[1]) or 0,
      tail = v[2] and tonumber(v[2]) or first,
      head = v[3] and tonumber(v[3]) or first - 1,
      tat = v[4] and tonumber(v[4]) or 0,
    }
    rates[b] = rate
    advance(key, rate, first)
    if rate.sum + charge > limit then
      refuse(freed_at(key, rate, rate.sum + charge - limit), b)
    end
    local takes = charge * MINUTE / limit
    rate.next = math.max(rate.tat, now) + takes
    local early = rate.next - math.max(burst, takes)
    if early > now then
      refuse(math.ceil(early), b)
    end
  end
end

if retry > now then
  return {0, now, retry, blocker}
end

for b = 1, #KEYS - 3 do
  local key = KEYS[b + 3]
  local a = 6 + (b - 1) * 4
  if ARGV[a] == 'held' then
    redis.call('ZADD', key, now + lease, id)
    if redis.call('PTTL', key) < lease then
      redis.call('PEXPIRE', key, lease)
    end
  else
    local rate, charge = rates[b], tonumber(ARGV[a + 1])
    redis.call('HINCRBY', key, int(cell), charge)
    redis.call('HSET', key,
      'sum', int(rate.sum + charge),
      'tail', int(math.min(rate.tail, cell)), -- the clock may have gone back
      'head', int(math.max(rate.head, cell)),
      'tat', string.format('%.3f', rate.next))
    redis.call('PEXPIRE', key, 2 * (window + MINUTE))
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
redis.call('ZADD', KEYS[3], now + lease, id)
if redis.call('PTTL', KEYS[3]) < lease then
  redis.call('PEXPIRE', KEYS[3], lease)
end
return {1, now}
