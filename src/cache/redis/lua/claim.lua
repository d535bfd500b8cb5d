-- KEYS: lease, queue, registry, list, state. ARGV: owner, ttl, batch, count, number of this call.
local held = redis.call('GET', KEYS[1])
if held ~= ARGV[1] and (held or redis.call('SISMEMBER', KEYS[3], ARGV[3]) == 1) then
  return redis.error_reply('LEASELOST the lease has another owner or none')
end
if held then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  -- The same call again: its answer got lost, so it is given once more.
  local call, start = string.match(redis.call('HGET', KEYS[5], 'claim') or '', '^(.*):(%d+)$')
  if call == ARGV[5] then
    return redis.call('LRANGE', KEYS[4], start, -1)
  end
end
-- Oldest first. Before the writes that need memory, for the reason given in held.lua.
local entries = redis.call('RPOP', KEYS[2], ARGV[4])
if not entries then
  return {}
end
if not held then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  redis.call('SADD', KEYS[3], ARGV[3])
end
local start = redis.call('RPUSH', KEYS[4], unpack(entries)) - #entries
redis.call('HSET', KEYS[5], 'claim', ARGV[5] .. ':' .. start)
return entries
