-- KEYS: lease, list of the successor. ARGV: owner, ttl, how many are there already, entries. Replaces what lies beyond.
local start = tonumber(ARGV[3])
if redis.call('LLEN', KEYS[2]) < start then
  return redis.error_reply('GAP the entries before these are gone')
end
if start == 0 then
  redis.call('DEL', KEYS[2])
else
  redis.call('LTRIM', KEYS[2], 0, start - 1)
end
return redis.call('RPUSH', KEYS[2], unpack(ARGV, 4))
