"""Topics."""

from __future__ import annotations

from praval.core.topics import (
    LONGEST,
    decode_segment,
    encode_segment,
    matches,
    parse_pattern,
    parse_topic,
)
from praval.errors import TopicError, TransportUnsupportedError
from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect, expect_equal, refused


@case()
async def wildcards(trial: Trial) -> str:
    """`*` or `+` stands for one segment and a final `#` for the rest, with dots and slashes."""
    root = trial.name
    endings = ["*", "a.*", "*.b", "a.*.c", "*.*", "#", "a.#", "a.b.#", "a.b.c.#", "a.b"]
    patterns = [f"{root}.{ending}" for ending in endings]
    patterns += [f"{root}/+", f"{root}/+/b/+", f"{root}/a/#", f"*.{root}-tail"]
    topics = [root, f"any.{root}-tail", f"{root}-tail"]
    topics += [f"{root}.{end}" for end in ("a", "b", "a.b", "b.a", "b.b", "a.b.c", "a.x.c", "ab.c")]
    topics += [f"{root}.a.b.c.d"]
    client = await trial.client()
    inboxes = {pattern: trial.inbox() for pattern in patterns}
    for pattern, inbox in inboxes.items():
        await client.subscribe(pattern, inbox)
    # in the second round the same again: what should not have come of the first is there by then
    await trial.fill_topics(client, topics * 2)
    for pattern, inbox in inboxes.items():
        parsed = parse_pattern(pattern)
        wanted = [topic for topic in topics if matches(parsed, parse_topic(topic))]
        await inbox.wait(2 * len(wanted))
        heard = [(each.topic, each.decode()) for each in inbox.got]
        both = [(each, each) for each in sorted(wanted * 2)]
        expect_equal(sorted(heard), both, f"the topics and bodies that {pattern} heard")
    return YES


@case()
async def group_wildcards(trial: Trial) -> str:
    """A group may subscribe to a pattern, and collects while nobody is there."""
    patterns, group = [trial.topic("eu") + ".*", trial.topic("us") + ".#"], trial.group()
    if not trial.capabilities.durable_wildcards:
        client = await trial.client()
        for pattern in patterns:
            with refused(TransportUnsupportedError, "wildcard", "pattern"):
                await client.subscribe(pattern, trial.inbox(), group=group)
        return "no: refused"
    await trial.offline_group(patterns, group, "worker")
    publisher = await trial.client("publisher")
    topics = [trial.topic(*each) for each in (("eu", "a"), ("eu", "a", "b"), ("us",), ("us", "a"))]
    await trial.fill_topics(publisher, topics)
    worker, inbox = await trial.client("worker"), trial.inbox()
    await worker.subscribe(patterns, inbox, group=group)
    wanted = [topics[0].encode(), topics[2].encode(), topics[3].encode()]
    await trial.nothing_more(publisher, topics[0], inbox, wanted)
    return YES


@case()
async def overlapping(trial: Trial) -> str:
    """A subscription to several patterns gets a message once, however many match."""
    one, two = trial.topic("a", "b"), trial.topic("a", "c")
    client, private, shared = await trial.client(), trial.inbox(), trial.inbox()
    patterns = [one, trial.topic("a") + ".*", trial.topic() + ".#", one.replace(".", "/")]
    await client.subscribe(patterns, private)
    if trial.capabilities.durable_wildcards:
        await client.subscribe(patterns, shared, group=trial.group())
    else:
        await client.subscribe([one, two, one], shared, group=trial.group())
    await trial.fill_topics(client, [one, two, one])
    for inbox in (private, shared):
        await inbox.wait(3)
    wanted = [one.encode(), two.encode(), one.encode()]
    await trial.nothing_more(client, one, private, wanted)
    await shared.wait(4)
    expect_equal(sorted(shared.bodies), sorted(private.bodies), "what the group got")
    return YES


@case()
async def several_topics(trial: Trial) -> str:
    """A group may subscribe to several topics, heard as one queue."""
    topics, group = [trial.topic(each) for each in "abc"], trial.group()
    await trial.offline_group(topics, group, "worker")
    publisher = await trial.client("publisher")
    await trial.fill_topics(publisher, [*topics, trial.topic("d"), *topics])
    worker, inbox = await trial.client("worker"), trial.inbox()
    await worker.subscribe(topics, inbox, group=group)
    await trial.nothing_more(publisher, topics[0], inbox, [each.encode() for each in topics * 2])
    return YES


TEXTS = [
    "grüße", "漢字", "😀", "\N{COMBINING ACUTE ACCENT}e", "a.b", "a/b", "*", "+", "#", "a*b", ">",
    "$SYS", "%", "%2E", "a:b", "a b", "a\tb", "a\nb", "\x00", "\x7f", "-", "_", "~", "'", '"',
    "\\", "{}", "[]", "()", "<", "&", "=", "?", ",", ";", "@", "!", "^", "`", "|", "UPPER",
]  # fmt: skip


@case()
async def any_text(trial: Trial) -> str:
    """Any text can be a topic's segment (see `encode_segment`), and a group's name."""
    client, inbox = await trial.client(), trial.inbox()
    await client.subscribe([trial.topic(each) for each in TEXTS[:12]], inbox, group=trial.group())
    for text in TEXTS[12:]:
        await client.subscribe(trial.topic(text), inbox)
    heard = trial.inbox()
    await client.subscribe(trial.topic() + "/+", heard)
    await trial.fill_topics(client, [trial.topic(each) for each in TEXTS])
    for each in (inbox, heard):
        await each.wait(len(TEXTS))
        found = sorted(decode_segment(got.topic.split(".")[-1]) for got in each.got)
        expect_equal(found, sorted(TEXTS), "the last segments")
        expect_equal(sorted(each.bodies), sorted(got.topic.encode() for got in each.got), "bodies")
    topic = trial.topic("of odd groups")
    odd = [f"{trial.name}.{name}" for name in ("grüße", "a/b", "x y", "*", "#", "$", ">", "a:b")]
    inboxes = [trial.inbox() for _ in odd]
    for name, each in zip(odd, inboxes, strict=True):
        await client.subscribe(topic, each, group=name)
    await client.publish(topic, b"for all")
    for each in inboxes:
        await each.wait(1)
    return YES


@case()
async def longest_topic(trial: Trial) -> str:
    """A topic of 255 bytes works, also for a group; a longer one is refused."""
    client, longest = await trial.client(), trial.topic("x" * (LONGEST - len(trial.name) - 1))
    private, shared, nested = trial.inbox(), trial.inbox(), trial.inbox()
    segments = trial.name + ".s" * ((LONGEST - len(trial.name)) // 2)
    await client.subscribe(longest, private)
    await client.subscribe(longest, shared, group=trial.group("g" * 100))
    await client.subscribe(segments, nested)
    await trial.fill_topics(client, [longest, segments])
    for inbox in (private, shared, nested):
        await inbox.wait(1)
    expect_equal(private.got[0].topic, longest, "the topic")
    expect(len(longest) == LONGEST, "the case must use the longest topic")
    for wrong in (longest + "x", encode_segment("ü") * 128, "." * 300):
        with refused(TopicError):
            await client.publish(wrong, b"")
        with refused(TopicError):
            await client.subscribe(wrong, trial.inbox())
    return YES


@case()
async def bad_patterns(trial: Trial) -> str:
    """What is no topic or pattern cannot be subscribed to, and the error says why."""
    client = await trial.client()
    for wrong in ("", "a..b", "a.#.b", "a/b.c", "a b", "a.b*", "a.b#", ".a", "a.", "%zz", "\ud800"):
        with refused(TopicError, what=repr(wrong)):
            await client.subscribe(wrong, trial.inbox())
        with refused(TopicError, what=repr(wrong)):
            await client.subscribe([trial.topic(), wrong], trial.inbox(), group=trial.group())
    return YES
