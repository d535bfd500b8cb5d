-- The slow way to release, for a Redis too full to take MULTI: the values travel back to be compared.
-- KEYS: lease, uploaded, index of the uploaded, records. ARGV: owner, ttl, batch, how long to remember the uploaded in ms,
-- what the names of sent digests begin with ('' to delete the records), then for each record its value and what to remember.
local done, remembered, doomed = 0, {}, {}
for i = 4, #KEYS do
  local value, note = ARGV[i * 2 - 2], ARGV[i * 2 - 1]
  local now = redis.pcall('GET', KEYS[i])
  if type(now) == 'string' and now == value then
    done = done + 1
    if ARGV[5] == '' then
      remembered[done], doomed[done] = note, KEYS[i]
    else
      local left = redis.call('PTTL', KEYS[i])
      if left > 0 then
        redis.call('SET', ARGV[5] .. KEYS[i], note, 'PX', left)
      else
        redis.call('SET', ARGV[5] .. KEYS[i], note)
      end
    end
  end
end
if #doomed > 0 then
  redis.call('APPEND', KEYS[2], table.concat(remembered))
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  redis.call('ZADD', KEYS[3], 0, ARGV[3])
  redis.call('UNLINK', unpack(doomed))
end
return done
