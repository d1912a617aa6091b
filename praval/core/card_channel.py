"""The channel of keys: cards are announced, asked for and passed on here.

Anybody may answer a query with the unexpired cards that it holds: a card proves itself. Our own we
say at once, those of others after a moment, if nobody else has said them. Ours we say from time to
time, too: that is how others know that we are at work (``praval.core.card_presence``).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from praval.core import key_channel
from praval.core.card_answers import CardAnswers
from praval.core.card_presence import CardPresence
from praval.core.cards import KnownCard
from praval.core.intake import QUERY_EVERY, Bucket, Rate
from praval.core.key_keeper import KeyKeeper
from praval.core.keys import Keyring
from praval.core.sealer import Sealer
from praval.core.security_events import SecurityEvent
from praval.core.topics import join
from praval.core.transport import Delivery, MessageTransport
from praval.errors import CardError, PravalError, ReplayError, SealCode, SealError

if TYPE_CHECKING:
    from praval.core.reef import Reef

log = logging.getLogger("praval.cards")

CONTENT_TYPE = "application/vnd.praval.card+json"
REPLICA, LEAVES = "replica", "leaves"
"""Headers of a card that its own host says: who that is, and whether for the last time."""
PATIENCE = 7.0
"""Seconds for one publication; the next round makes up for it."""
QUIET, ARRIVAL = 0.05, 2.0
"""Seconds without a card, and at most, for which a Reef waits for cards when it starts."""
REFUSED = Rate(1000, 200)
"""Messages on the channel that may be refused before no more is looked at."""
REMEMBERED = 1000
LONGEST_REPLICA = 64
NO_HEADERS: Mapping[str, str] = {}


class CardChannel:
    """See the module. Used on the Reef's loop only."""

    def __init__(
        self,
        reef: Reef,
        transport: MessageTransport,
        *,
        replica: str,
        keeper: KeyKeeper,
        sealer: Sealer,
    ) -> None:
        self._transport = transport
        self._replica = replica
        self._interval = reef.settings.reef_config.presence_interval
        self._keeper = keeper
        self._sealer = sealer
        self.topic = join(reef.namespace, "@keys")
        self.presence = CardPresence(reef, keeper, replica)
        self.believed: Callable[[KnownCard], None] = lambda known: None
        """Called with each card that is new here."""
        self.usurped: Callable[[str, ReplayError], None] = lambda name, error: None
        """Called when another store speaks for one of our names."""
        self._said: dict[str, bytes] = {}
        """Our cards, as they were published last."""
        self._announcing: set[bytes] = set()
        """Those that are on their way to the broker."""
        self._heard = 0
        self._cards: dict[bytes, bytes] = {}
        """Agent id -> the newest card that was believed."""
        self._known: dict[bytes, str] = {}
        """These cards -> whose they are: one that is said again need not be checked again."""
        self._statuses: OrderedDict[bytes, None] = OrderedDict()
        """Status lists that were heard: who comes later is to know them, too."""
        self._answers = CardAnswers(self._answer)
        self._asked: OrderedDict[str, int] = OrderedDict()
        self._echoes: dict[bytes, asyncio.Future[None]] = {}
        self._bucket = Bucket(REFUSED, sealer.now())
        self._sending: set[asyncio.Task[Any]] = set()
        self._rounds: asyncio.Task[None] | None = None
        self._at_work = False
        """Whether it speaks: from :meth:`start` to :meth:`leave`."""
        self.names: set[str] = set()
        """The names that this Reef answers for; the keyring may have others', too."""

    # -- life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Publish our cards, ask for all others, and wait until those had time to come in."""
        self._at_work = True
        self._rounds = asyncio.create_task(self._keep_saying(), name="praval:cards")
        await self.changed()
        await self._say(key_channel.query())
        try:
            async with asyncio.timeout(ARRIVAL):
                await self._until_quiet()
        except TimeoutError:
            log.info("cards are still coming in; those that come later are used from then on")

    async def _until_quiet(self) -> None:
        """Wait for an echo of the broker, then until no card has come in for a moment."""
        await self._round_trip()
        heard = -1
        while heard != (heard := self._heard):  # noqa: ASYNC110 - silence is no event
            await asyncio.sleep(QUIET)

    async def join_as(self, name: str, topics: Iterable[str]) -> None:
        """See to it that a name has keys and a card that says what it hears.

        Raises:
            KeyringError, CardError: it cannot have any.
        """
        now, hears = self._sealer.now(), tuple(topics)

        def enrol(keyring: Keyring) -> None:
            if name in keyring.names:
                keyring.subscribe(name, hears, now=now)
            else:
                keyring.add(name, now=now, subscriptions=hears)

        await self._keeper.change(enrol, now)
        self.names.add(name)
        self.presence.changed()

    async def changed(self) -> None:
        """Publish those of our cards that are new; return when that is done, or given up."""
        if not self._at_work:
            return  # start() will
        await asyncio.gather(*(self._announce(name) for name in await self._unsaid()))

    async def changed_soon(self) -> None:
        """Begin to publish those of our cards that are new; the broker may be away."""
        for name in await self._unsaid():
            self._soon(self._announce(name))

    async def _unsaid(self) -> list[str]:
        await self._keeper.ready()
        keyring = self._keeper.keyring
        return [name for name in self.names if self._said.get(name) != keyring.card(name)]

    async def _announce(self, name: str) -> None:
        card = self._keeper.keyring.card(name)
        if card not in self._announcing:
            self._announcing.add(card)
            try:
                if await self._say(card, {REPLICA: self._replica}):
                    self._said[name] = card  # else the next tick tries again
            finally:
                self._announcing.discard(card)

    async def leave(self) -> None:
        """Say so, then nothing any more.

        Cards stay good: the broker keeps what is sealed to them.
        """
        was_at_work, self._at_work = self._at_work, False
        self._answers.close()
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait([self._rounds])
        if was_at_work:
            goodbye = {REPLICA: self._replica, LEAVES: "1"}
            await asyncio.gather(*(self._say(card, goodbye) for card in self._said.values()))
        if self._keeper.is_shared:
            await self._remember()
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait(self._sending)

    async def _keep_saying(self) -> None:
        """Say our cards again and again, so that others know that we are at work."""
        while True:
            await asyncio.sleep(self._interval)
            for card in list(self._said.values()):
                await self._say(card, {REPLICA: self._replica})

    async def _remember(self) -> None:
        """Let the store have the cards that came in since the last look."""
        try:
            await self._keeper.refresh(self._sealer.now())
        except SealError as error:
            log.warning("the store does not know the newest cards: %s", error)

    # -- what comes in -------------------------------------------------------------------

    async def hear(self, delivery: Delivery) -> None:
        """Take a card, a status list or a query."""
        data = bytes(delivery)
        if (echo := self._echoes.pop(data, None)) is not None:
            if not echo.done():
                echo.set_result(None)
            return
        if (name := self._known.get(data)) is not None:
            self._take_again(name, data, delivery.headers)
            return
        now = self._sealer.now()
        if not self._bucket.take(now, 0):  # cards are said again, and status lists told to who asks
            flood = CardError("Too much was refused on it lately.", SealCode.RATE_LIMITED)
            self._report(flood, len(data))
            return
        try:
            heard = await self._hear(data, now)
        except CardError as error:
            self._bucket.take(now)
            self._report(error, len(data))
            return
        if heard is None:
            return
        if heard.kind == "status":
            self._statuses[data] = None
            if len(self._statuses) > REMEMBERED:
                self._statuses.popitem(last=False)
        if heard.card is not None:
            self._take(heard.card, data)
            self._take_again(heard.card.name, data, delivery.headers)
        elif heard.kind == "query":
            for answer in (*heard.answers, *(self._statuses if heard.answers else ())):
                self._answers.owe(answer, own=answer in self._said.values())

    async def _hear(self, data: bytes, now: int) -> key_channel.Heard | None:
        await self._keeper.ready()
        try:
            return key_channel.hear(self._keeper.keyring, data, now)
        except ReplayError:
            if not self._keeper.is_shared:
                return self._usurp(data, now)
        await self._keeper.refresh(now)  # perhaps another replica has renewed the keys we share
        await self._keeper.ready()
        return self._usurp(data, now)

    def _usurp(self, data: bytes, now: int) -> key_channel.Heard | None:
        keyring = self._keeper.keyring
        try:
            return key_channel.hear(keyring, data, now)
        except ReplayError as error:
            from praval.core.cards import read_card

            self.usurped(read_card(data).name, error)
            return None

    def _take(self, known: KnownCard, data: bytes) -> None:
        """Take a card that is believed."""
        self._heard += 1
        before = self._cards.get(known.agent_id)
        if before != data:
            self._known.pop(before or b"", None)
            self._cards[known.agent_id] = data
            self._known[data] = known.name
            self.presence.changed()
            self.believed(known)

    def _take_again(self, name: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Note that somebody says a card that is believed: its own host, or another."""
        self._answers.said(data)
        replica = headers.get(REPLICA)
        if replica is None or len(replica) > LONGEST_REPLICA:
            return
        if LEAVES in headers:
            self.presence.left(name, replica)
        else:
            self.presence.said(name, replica)

    # -- what goes out -------------------------------------------------------------------

    def want(self, *, name: str | None = None, agent_id: bytes | None = None) -> None:
        """Ask for a card, unless that was done a moment ago."""
        now = self._sealer.now()
        if agent_id is not None:
            if self._sealer.intake.may_query(agent_id, now):
                self._send_soon(key_channel.query(ids=[agent_id]))
        elif name is not None and now - self._asked.get(name, -QUERY_EVERY) >= QUERY_EVERY:
            self._asked.pop(name, None)
            self._asked[name] = now
            if len(self._asked) > REMEMBERED:
                self._asked.popitem(last=False)
            self._send_soon(key_channel.query(names=[name]))

    async def publish(self, data: bytes) -> None:
        """Hear a status list (or card), and publish it to all others.

        Raises:
            CardError: it is not believed.
        """
        await self.hear_own(data)
        await self._say(data)

    async def hear_own(self, data: bytes) -> None:
        """Take in what was not said on the channel, for good: a status list, somebody's card."""
        now = self._sealer.now()
        heard = await self._keeper.change(lambda keyring: key_channel.hear(keyring, data, now), now)
        if heard.kind == "status":
            self._statuses[data] = None
        if heard.card is not None:
            self._take(heard.card, data)

    def _answer(self, data: bytes) -> None:
        own = data in self._said.values()
        self._soon(self._say(data, {REPLICA: self._replica} if own else NO_HEADERS))

    def _send_soon(self, data: bytes) -> None:
        self._soon(self._say(data))

    def _soon(self, work: Coroutine[Any, Any, object]) -> None:
        if not self._at_work:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _say(self, data: bytes, headers: Mapping[str, str] = NO_HEADERS) -> bool:
        """Publish; whether the broker has it."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._transport.publish(
                    self.topic, data, headers={"content-type": CONTENT_TYPE, **headers}
                )
        except (PravalError, TimeoutError) as error:
            log.warning("a card or query was not published: %s", str(error) or "time-out")
            return False
        return True

    async def _round_trip(self) -> None:
        """Publish a query that nobody can answer; return when it has come back."""
        marker = key_channel.query(ids=[random.randbytes(16)])
        self._echoes[marker] = asyncio.get_running_loop().create_future()
        try:
            echo = self._echoes[marker]
            await self._say(marker)
            await echo
        finally:
            self._echoes.pop(marker, None)

    def _report(self, error: CardError, size: int) -> None:
        text = f"On the channel of keys: {error}"
        event = SecurityEvent(error.code, self._sealer.now() / 1000, text, size=size)
        # an older card is what somebody says who has not heard the newest one yet
        passing = error.code in (SealCode.STALE_CARD, SealCode.NOT_YET_VALID)
        self._sealer.events.report(event, passing=passing)
