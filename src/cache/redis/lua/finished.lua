-- A finish that is repeated because its answer got lost finds this and has nothing left to do.
if redis.call('GET', KEYS[1]) == 'finished:' .. ARGV[1] then
  return 'FINISHED'
end
