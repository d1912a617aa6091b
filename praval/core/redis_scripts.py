"""What a vault does on the Redis server, each in one step; 0 or nil: a lock was not ours."""

from __future__ import annotations

CREATE = """
if redis.call('exists', KEYS[1]) == 1 then return 0 end
redis.call('hset', KEYS[1], 'version', ARGV[1], 'keyring', ARGV[2])
redis.call('del', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('hset', KEYS[2], 'instance', ARGV[3], 'clock', 0, 'fence', 0, 'number', 0)
return 1
"""
UNLOCK = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"
WRITE_KEYRING = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[2], 'keyring', ARGV[2])
return 1
"""
RENEW = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('get', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('del', KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call('hset', KEYS[3], 'instance', ARGV[3], 'clock', 0, 'fence', 0, 'number', 0)
return 1
"""
# lock, meta, entries, expiries, peers, then one sorted set of what is committed for each peer
WRITE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[2], 'clock', ARGV[2], 'fence', ARGV[3], 'number', ARGV[4])
local n = 5
for _ = 1, tonumber(ARGV[n]) do
    local done = KEYS[5 + tonumber(ARGV[n + 1])]
    redis.call('hset', KEYS[3], ARGV[n + 2], ARGV[n + 3])
    redis.call('zadd', KEYS[4], ARGV[n + 4], ARGV[n + 2])
    if ARGV[n + 5] ~= '' then redis.call('zadd', done, ARGV[n + 5], ARGV[n + 2]) end
    n = n + 5
end
n = n + 1
for _ = 1, tonumber(ARGV[n]) do
    redis.call('hdel', KEYS[3], ARGV[n + 2])
    redis.call('zrem', KEYS[4], ARGV[n + 2])
    redis.call('zrem', KEYS[5 + tonumber(ARGV[n + 1])], ARGV[n + 2])
    n = n + 2
end
n = n + 1
for _ = 1, tonumber(ARGV[n]) do
    redis.call('hset', KEYS[5], ARGV[n + 1], ARGV[n + 2])
    n = n + 2
end
return 1
"""
