-- KEYS: lease, buried. ARGV: owner, ttl, positions.
return redis.call('SADD', KEYS[2], unpack(ARGV, 3))
