-- The slow way to release, for a Redis too full to take MULTI: the values travel back to be compared.
-- KEYS: lease, records. ARGV: owner, ttl, what the names of sent digests begin with ('' to delete the records), then for each
-- record its value and its digest.
local done, doomed = 0, {}
for i = 2, #KEYS do
  local value, digest = ARGV[i * 2], ARGV[i * 2 + 1]
  local now = redis.pcall('GET', KEYS[i])
  if type(now) == 'string' and now == value then
    done = done + 1
    if ARGV[3] == '' then
      doomed[done] = KEYS[i]
    else
      local left = redis.call('PTTL', KEYS[i])
      if left > 0 then
        redis.call('SET', ARGV[3] .. KEYS[i], digest, 'PX', left)
      else
        redis.call('SET', ARGV[3] .. KEYS[i], digest)
      end
    end
  end
end
if #doomed > 0 then
  redis.call('UNLINK', unpack(doomed))
end
return done
