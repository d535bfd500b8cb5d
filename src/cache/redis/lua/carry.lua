-- KEYS: lease, state. ARGV: owner, ttl, name for a new batch. Returns the name of the batch that unsettled entries move to:
-- the one that a finish noted before it died, so that what it had copied is found and replaced.
redis.call('HSETNX', KEYS[2], 'successor', ARGV[3])
return redis.call('HGET', KEYS[2], 'successor')
