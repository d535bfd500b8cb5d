-- KEYS: lease. ARGV: owner.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
  return redis.error_reply('LEASELOST the lease has another owner')
end
redis.call('DEL', KEYS[1])
return 'OK'
