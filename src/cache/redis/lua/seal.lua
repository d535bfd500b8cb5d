-- KEYS: lease, state, sequence, sealed, finished. ARGV: owner, ttl, batch, reading. Returns what was sealed before this reading
-- and may have read the same records: members of `sealed` and of `finished`.
local began = redis.call('HGET', KEYS[2], 'began:' .. ARGV[4])
if not began then
  return redis.error_reply('GAP the reading is gone')
end
local own = ARGV[3] .. ':'
local number = tonumber(redis.call('ZSCORE', KEYS[4], own .. ARGV[4]))
if not number then
  number = redis.call('INCR', KEYS[3])
  redis.call('ZADD', KEYS[4], number, own .. ARGV[4])
end
local rivals = {}
for _, rival in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', '(' .. number)) do
  if string.sub(rival, 1, #own) ~= own then
    rivals[#rivals + 1] = rival
  end
end
-- Without those whose batch was finished before this reading began: it found their records deleted, or remembered as sent.
for _, rival in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '(' .. began, '+inf')) do
  -- All of them, unless this is a repetition and the rival was sealed and finished since the first time.
  if tonumber(string.match(rival, '%d+$')) < number then
    rivals[#rivals + 1] = rival
  end
end
return rivals
