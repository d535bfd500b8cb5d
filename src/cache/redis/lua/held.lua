-- What every change to a batch begins with. KEYS[1]: the lease. ARGV[1]: its owner. ARGV[2]: its length in ms.
-- PEXPIRE renews the lease, and it is the first write on purpose: it takes no memory, and after such a write Redis lets the
-- rest of a script pass even above maxmemory. A full Redis must not refuse the upload, which is what empties it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return redis.error_reply('LEASELOST the lease has another owner or none')
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
