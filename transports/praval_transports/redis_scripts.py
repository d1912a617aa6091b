r"""What must happen at once on a Redis server, as Lua.

Keys, all behind ``P``, the prefix and a colon (no topic begins with one):

- ``P<topic>``: the stream of a topic. It is there exactly while a group is, so that a message
  that nobody would ever read is not kept.
- ``P:topics``: the topics that have a stream, scored with when the stream may expire.
- ``P:patterns``: ``<group>\n<pattern>`` of the groups with wildcards: they get a new topic's
  stream with its first message.
- ``P:wake:<member>``: a stream of one member of a group. An entry interrupts its blocking read;
  the key expires when the member no longer refreshes it, which is how others know that it died.
- ``P:members:<group>``: the members to wake.

A subscription without a group is a group of its own, ``private:<member>``, that goes with its
member. A stream with only such groups expires with them.
"""

from __future__ import annotations

import re

from praval.core.topics import ONE, REST, Topic

PRIVATE = "private:"

_COMMON = r"""
local P = KEYS[1]
local TOPICS, PATTERNS = P .. ':topics', P .. ':patterns'
local call = redis.call

local function stream(topic) return P .. topic end
local function wake_key(member) return P .. ':wake:' .. member end
local function members_key(group) return P .. ':members:' .. group end
local function now() return tonumber(call('TIME')[1]) end
local function is_private(group) return string.sub(group, 1, 8) == 'private:' end

local function is_alive(group)
  return not is_private(group) or call('EXISTS', wake_key(string.sub(group, 9))) == 1
end

local function wake(member)
  return call('XADD', wake_key(member), 'NOMKSTREAM', 'MAXLEN', 1, '*', 'wake', '')
end

local function wake_all(group)
  for _, member in ipairs(call('SMEMBERS', members_key(group))) do
    if not wake(member) then call('SREM', members_key(group), member) end
  end
end

-- Let a group hear a stream from an id on; returns whether it did not before.
local function create(key, group, from)
  local made = redis.pcall('XGROUP', 'CREATE', key, group, from, 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made) end
  return not made.err
end

-- Let the groups with wildcards hear a topic that has no stream yet.
local function announce(topic)
  for _, entry in ipairs(call('SMEMBERS', PATTERNS)) do
    local group, pattern = string.match(entry, '^(.-)\n(.*)$')
    if not is_alive(group) then
      call('SREM', PATTERNS, entry)
    elseif string.find(topic .. '.', pattern) and create(stream(topic), group, '0') then
      wake_all(group)
    end
  end
end

local function fields(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- The first id that a group may still need.
local function oldest(key, group)
  if group.pending > 0 then return call('XPENDING', key, group.name)[2] end
  local time, count = string.match(group['last-delivered-id'], '^(%d+)-(%d+)$')
  return string.format('%s-%.0f', time, tonumber(count) + 1)
end

local function is_before(a, b)
  local time, count = string.match(a, '^(%d+)-(%d+)$')
  local other_time, other_count = string.match(b, '^(%d+)-(%d+)$')
  if time ~= other_time then return tonumber(time) < tonumber(other_time) end
  return tonumber(count) < tonumber(other_count)
end

-- Forget dead members' groups, drop what every group is done with, and a stream without groups.
local function tend(topic, lease)
  local key = stream(topic)
  if call('EXISTS', key) == 0 then call('ZREM', TOPICS, topic) return end
  local first, durable
  for _, flat in ipairs(call('XINFO', 'GROUPS', key)) do
    local group = fields(flat)
    if not is_alive(group.name) then
      call('XGROUP', 'DESTROY', key, group.name)
    else
      durable = durable or not is_private(group.name)
      local id = oldest(key, group)
      if not first or is_before(id, first) then first = id end
    end
  end
  if not first then
    call('DEL', key)
    call('ZREM', TOPICS, topic)
    return
  end
  call('XTRIM', key, 'MINID', first)
  if durable then
    call('PERSIST', key)
    call('ZADD', TOPICS, '+inf', topic)
  else
    call('EXPIRE', key, lease)
    call('ZADD', TOPICS, now() + lease, topic)
  end
end

-- Forget a group; returns whether it was there.
local function drop_group(group, lease)
  local found = 0
  for _, entry in ipairs(call('SMEMBERS', PATTERNS)) do
    if string.sub(entry, 1, #group + 1) == group .. '\n' then
      call('SREM', PATTERNS, entry)
      found = 1
    end
  end
  for _, topic in ipairs(call('ZRANGE', TOPICS, 0, -1)) do
    if redis.pcall('XGROUP', 'DESTROY', stream(topic), group) == 1 then
      tend(topic, lease)
      found = 1
    end
  end
  return found
end

local function members_at_work(group)
  local found = 0
  for _, member in ipairs(call('SMEMBERS', members_key(group))) do
    found = found + call('EXISTS', wake_key(member))
  end
  return found
end

local function forget_idle_consumers(key, group, lease)
  for _, flat in ipairs(call('XINFO', 'CONSUMERS', key, group)) do
    local consumer = fields(flat)
    if consumer.pending == 0 and consumer.idle > lease * 1000 then
      call('XGROUP', 'DELCONSUMER', key, group, consumer.name)
    end
  end
end
"""

JOIN = (
    _COMMON
    + r"""
local lease, group, member, exact = tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local heard = {}
-- a first write that needs no memory: the others may follow when there is none, so that a full
-- server can be drained
call('ZREMRANGEBYSCORE', TOPICS, '-inf', now())
if member ~= '' then
  create(wake_key(member), group, '$')
  call('EXPIRE', wake_key(member), lease)
  call('SADD', members_key(group), member)
  call('EXPIRE', members_key(group), lease)
end
for i = 5, 4 + exact do
  local topic = ARGV[i]
  if call('EXISTS', stream(topic)) == 0 then announce(topic) end
  create(stream(topic), group, '$')
  heard[topic] = true
end
for i = 5 + exact, #ARGV do
  call('SADD', PATTERNS, group .. '\n' .. ARGV[i])
  for _, topic in ipairs(call('ZRANGE', TOPICS, 0, -1)) do
    if string.find(topic .. '.', ARGV[i]) and call('EXISTS', stream(topic)) == 1 then
      create(stream(topic), group, '$')
      heard[topic] = true
    end
  end
end
local topics = {}
for topic in pairs(heard) do
  forget_idle_consumers(stream(topic), group, lease)
  tend(topic, lease)
  topics[#topics + 1] = topic
end
return topics
"""
)
"""Let a member of a group hear topics; returns them, those that match its patterns included.

Arguments: lease, group, member (empty: only the group is wanted), number of topics, topics...,
patterns (:func:`lua_pattern`)...
"""

ROUTE = (
    _COMMON
    + r"""
local lease, topic = tonumber(ARGV[1]), ARGV[2]
if call('EXISTS', stream(topic)) == 0 then announce(topic) end
if not call('XADD', stream(topic), 'NOMKSTREAM', unpack(ARGV, 3)) then return 0 end
tend(topic, lease)
return 1
"""
)
"""Publish on a topic that had no stream; returns whether some group hears it.

Arguments: lease, topic, the rest of XADD...
"""

GIVE_BACK = (
    _COMMON
    + r"""
local group, member, topic, id = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.pcall('XPENDING', stream(topic), group, id, id, 1, member)
if held.err or #held == 0 then return end
call('XCLAIM', stream(topic), group, member, 0, id, 'IDLE', 10000000000, 'JUSTID')
wake_all(group)
"""
)
"""Let any member of the group claim a message at once.

Arguments: lease, group, member, topic, id.
"""

WAKE = (
    _COMMON
    + r"""
call('EXPIRE', wake_key(ARGV[2]), ARGV[1])  -- needs no memory, so that the next may
wake(ARGV[2])
"""
)
"""Interrupt the blocking read of a member. Arguments: lease, member."""

TEND = _COMMON + r"for i = 2, #ARGV do tend(ARGV[i], tonumber(ARGV[1])) end"
"""Trim streams. Arguments: lease, topics..."""

LEAVE = (
    _COMMON
    + r"""
local lease, group, member, drop = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
call('SREM', members_key(group), member)
call('DEL', wake_key(member))
if drop == '1' then drop_group(group, lease) end
"""
)
"""Let a member hear nothing more, and remove its group. Arguments: lease, group, member, 1 or 0."""

DROP = (
    _COMMON
    + r"""
local lease, group = tonumber(ARGV[1]), ARGV[2]
if members_at_work(group) > 0 then return -1 end
call('DEL', members_key(group))
return drop_group(group, lease)
"""
)
"""Remove a group; returns whether it was there, or -1: it has members. Arguments: lease, group."""

GROUPS = (
    _COMMON
    + r"""
local names, kept = {}, {}
local function note(group, messages)
  if is_private(group) then return end
  if not kept[group] then
    names[#names + 1], kept[group] = group, 0
  end
  -- a lag that the server cannot tell makes the sum unknown
  kept[group] = (messages and kept[group] >= 0) and kept[group] + messages or -1
end
for _, entry in ipairs(call('SMEMBERS', PATTERNS)) do note(string.match(entry, '^(.-)\n'), 0) end
for _, topic in ipairs(call('ZRANGE', TOPICS, 0, -1)) do
  local groups = redis.pcall('XINFO', 'GROUPS', stream(topic))
  for _, flat in ipairs(groups.err and {} or groups) do
    local group = fields(flat)
    note(group.name, group.lag and group.pending + group.lag)
  end
end
local found = {}
for i, group in ipairs(names) do found[i] = {group, members_at_work(group), kept[group]} end
return found
"""
)
"""Return each durable group with its members at work and its messages (-1: unknown).

Argument: lease.
"""


def lua_pattern(pattern: Topic) -> str:
    """Return the Lua pattern that finds the topics, with a dot after them, that it matches."""
    found = "^"
    for segment in pattern:
        if segment == REST:
            return found
        found += "[^.]+" if segment == ONE else re.sub(r"([!-/:-@\[-`{-~])", r"%\1", segment)
        found += "%."
    return f"{found}$"
