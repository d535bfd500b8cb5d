-- KEYS: lease, marks. ARGV: owner, ttl, offset in bytes, marks.
if redis.call('STRLEN', KEYS[2]) < tonumber(ARGV[3]) then
  -- SETRANGE would fill the gap with zeroes, which read as "not this reading's business".
  return redis.error_reply('GAP the marks before these are gone')
end
return redis.call('SETRANGE', KEYS[2], ARGV[3], ARGV[4])
