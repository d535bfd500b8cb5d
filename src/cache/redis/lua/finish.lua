-- KEYS: lease, registry, list, state, buried, sequence, sealed, finished.
-- ARGV: owner, ttl, batch, how long to remember the end and the loaded readings in ms, successor or '', its length, then what
-- the names of in-flight lists, of this batch's marks and of marks of finished batches begin with, then the loaded readings.
local successor = redis.call('HGET', KEYS[4], 'successor')
if ARGV[6] == '' then
  if successor then
    redis.call('UNLINK', ARGV[8] .. successor)
  end
elseif redis.call('LLEN', ARGV[8] .. ARGV[6]) ~= tonumber(ARGV[7]) then
  return redis.error_reply('GAP the entries to be carried over are gone')
else
  redis.call('SADD', KEYS[2], ARGV[6])
end
local loaded, number = {}, nil
for i = 11, #ARGV do
  loaded[ARGV[i]] = true
end
for reading = 1, tonumber(redis.call('HGET', KEYS[4], 'readings') or 0) do
  local name, marks = ARGV[3] .. ':' .. reading, ARGV[9] .. reading
  if loaded[tostring(reading)] and redis.call('EXISTS', marks) == 1 then
    number = number or redis.call('INCR', KEYS[6])
    redis.call('ZADD', KEYS[8], number, name .. ':' .. (redis.call('ZSCORE', KEYS[7], name) or 0))
    redis.call('RENAME', marks, ARGV[10] .. name)
    redis.call('PEXPIRE', ARGV[10] .. name, ARGV[5])
  else
    redis.call('UNLINK', marks)
  end
  redis.call('ZREM', KEYS[7], name)
end
redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[5])
redis.call('SREM', KEYS[2], ARGV[3])
redis.call('SET', KEYS[1], 'finished:' .. ARGV[1], 'PX', ARGV[4])
if number then
  redis.call('PEXPIRE', KEYS[8], ARGV[5])
end
-- The oldest, and a few more than this batch added, so that forgetting keeps up.
for _, reading in ipairs(redis.call('ZRANGE', KEYS[8], 0, #ARGV + 5)) do
  if redis.call('EXISTS', ARGV[10] .. string.match(reading, '^(.*):')) == 1 then
    break
  end
  redis.call('ZREM', KEYS[8], reading)
end
return 'FINISHED'
