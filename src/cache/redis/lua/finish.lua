-- KEYS: lease, registry, list, state, buried, index of the uploaded.
-- ARGV: owner, ttl, batch, how long to remember the end in ms, successor or '', its length, then what the names of in-flight
-- lists, of this batch's marks and of uploaded keys begin with.
local successor = redis.call('HGET', KEYS[4], 'successor')
if ARGV[5] == '' then
  if successor then
    redis.call('UNLINK', ARGV[7] .. successor)
  end
elseif redis.call('LLEN', ARGV[7] .. ARGV[5]) ~= tonumber(ARGV[6]) then
  return redis.error_reply('GAP the entries to be carried over are gone')
else
  redis.call('SADD', KEYS[2], ARGV[5])
end
for reading = 1, tonumber(redis.call('HGET', KEYS[4], 'readings') or 0) do
  redis.call('UNLINK', ARGV[8] .. reading)
end
redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[5])
redis.call('SREM', KEYS[2], ARGV[3])
redis.call('SET', KEYS[1], 'finished:' .. ARGV[1], 'PX', ARGV[4])
-- A few at a time is enough: every batch adds one.
for _, batch in ipairs(redis.call('ZRANGE', KEYS[6], 0, 15)) do
  if redis.call('EXISTS', ARGV[9] .. batch) == 0 then
    redis.call('ZREM', KEYS[6], batch)
  end
end
return 'FINISHED'
