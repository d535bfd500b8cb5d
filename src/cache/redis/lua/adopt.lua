-- KEYS: lease, registry, state. ARGV: owner, ttl, batch, number of this call.
if redis.call('SISMEMBER', KEYS[2], ARGV[3]) == 0 then
  return 0
end
local held = redis.call('GET', KEYS[1])
if held then
  -- Ours only if this very call took it and its answer got lost: two tasks of one owner must not share a batch.
  return (held == ARGV[1] and redis.call('HGET', KEYS[3], 'adopt') == ARGV[4]) and 1 or 0
end
-- There is nothing to delete; it opens the door on a full Redis, see held.lua.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[3], 'adopt', ARGV[4])
return 1
