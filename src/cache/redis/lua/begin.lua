-- KEYS: lease, state, sequence. ARGV: owner, ttl, number of this call, note.
local call, number = string.match(redis.call('HGET', KEYS[2], 'begin') or '', '^(.*):(%d+)$')
if call == ARGV[3] then
  return tonumber(number)
end
local reading = redis.call('HINCRBY', KEYS[2], 'readings', 1)
redis.call('HSET', KEYS[2], 'reading:' .. reading, ARGV[4], 'began:' .. reading, redis.call('GET', KEYS[3]) or '0',
  'begin', ARGV[3] .. ':' .. reading)
return reading
