"""`mdms live`, without its terminal: what is stored is loaded, the gap up to now closed by REST, and then every message listened to.

1. `begin`  memories and last bars from the warehouse; what closed since the journal's end is told late, each once
2. Joined   the stream flows: the closed candles since the last known ones are asked of REST while the messages wait in a queue
3. Heard    forming bars; those that close are judged; `tick` closes by the exchange's clock once the queue is empty
4. Lost     nothing is closed until the stream flows again and 2 was done
5. Followed once a minute the warehouse is looked at: candles that were revised, and which markets are collected (`universe.py`).
           What has changed is taken in once all that has closed is judged: what is known of the others stays as it is
6. 1d, 1w and 1M: when such a bar has closed, its candle is asked of REST before anything is decided on it (`coarse.py`)

Nothing here is written to the warehouse, and no candle is kept.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import duckdb

from mdms_pipeline.collect.socket import QUEUED, Heard, Joined, Lost, Wanted
from mdms_pipeline.live.coarse import PART
from mdms_pipeline.live.deliver import Delivery
from mdms_pipeline.live.engine import Engine, Message, bars_of
from mdms_pipeline.live.gap import Answer, Asked, Gap, Refusal, close_gaps
from mdms_pipeline.live.journal import BOUND, INDEXED, SHORTEST, Journal
from mdms_pipeline.live.lane import Bar, Lane
from mdms_pipeline.live.load import Found, judged_bars, load, reloaded
from mdms_pipeline.live.news import REMEMBERED, News
from mdms_pipeline.live.room import OverMemory, Room, check_room, room_of
from mdms_pipeline.live.signal import SIGNAL, Signal
from mdms_pipeline.live.tape import NEVER
from mdms_pipeline.live.universe import Change, change
from mdms_pipeline.live.watch import Watch, signals
from mdms_pipeline.market import DAY, Candles, Instant, timeframe
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import DELISTED, Partition, Standing, standings
from mdms_pipeline.store.schema import SKIP, no_trade
from mdms_pipeline.store.series import closes_before
from mdms_pipeline.store.signals import Watched

Event = Heard | Lost | Joined
LOOK = 0.2  # s of our time between two looks at the exchange's clock
SHOW = 1.0  # s of our time between two looks at what forms
AGAIN = 5.0  # s of our time until REST is asked again for what it did not answer
RECENT = 100  # signals that are kept to be shown
TRADED = 7  # days before today, within which a market must have traded for its change to be shown
FOLLOW = 60.0  # s of our time between two looks at what became of the stored candles
WAITING = 20_000  # events that wait at the most while a gap is closed; then the stream waits
EVENT = 500  # bytes of one in RAM at the most; tracemalloc
FIXED = SIGNAL * (REMEMBERED + RECENT) + EVENT * (WAITING + QUEUED) + INDEXED * (BOUND // SHORTEST)  # bytes, whatever is watched
MEND = 190  # bars that are told again by REST where one of them is doubted


@dataclass(frozen=True)
class Over:
    """All candles of the slot of a day, a week or a month were told."""

    timeframe: str
    slot: Instant


Waiting = Event | Answer | Refusal | Over | None


@dataclass
class Health:
    """How the process stands, for whoever looks."""

    state: str = "starting"  # starting, waiting for the stream, closing the gap, live
    reason: str = ""
    joined: int = 0  # times
    lost: int = 0
    messages: int = 0
    signals: int = 0
    provisional: int = 0
    late: int = 0  # signals of bars that closed while nobody listened
    heard_at: float = math.nan  # s UTC: the newest message
    slowest: float = 0.0  # s from a message's arrival to the emission of its signals
    held: int = 0  # bytes in RAM, looked at once a second
    dropped: dict[str, str] = field(default_factory=dict)  # "symbol timeframe" -> why it is not watched (any more)


@dataclass(frozen=True)
class Closes:
    """With what a UTC day (it begins at 09:00 KST) began, as far as it is stored: to be shown."""

    midnight: Instant = 0
    of: Mapping[str, float] = field(default_factory=dict)  # symbol -> the last price before


class Live:
    """One process of live signals."""

    def __init__(
        self,
        watches: Sequence[Watch],
        warehouse: Warehouse,
        symbols: Sequence[str],
        exchange: Asked,
        clock: Callable[[], float],
        delivery: Delivery,
        expected: tuple[type[Exception], ...] = (),
        gone: tuple[type[Exception], ...] = (),
        tell: Callable[[Sequence[Signal]], None] = lambda signals: None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`symbols` are collected; `expected` are the errors of an exchange that does not answer, `gone` those of a market that is none.

        Raises OverMemory where these rules on these markets may need more than they are allowed.
        """
        self.watches, self.warehouse, self.exchange, self.clock, self.timer = watches, warehouse, exchange, clock, timer
        self.delivery, self.expected, self.gone, self.symbols, self.hand = delivery, expected, gone, symbols, tell
        self.health, self.news = Health(), News()
        self.recent: list[Signal] = []  # the last ones, newest last
        with warehouse.read() as connection:
            self._no_trade = no_trade(connection)
        self.room = check_room(self._room_for(symbols))
        self.engine = Engine(watches, symbols, self._no_trade != SKIP, clock)
        self.wanted = Wanted(self.engine.wanted)  # what the stream is to tell of
        self.names: Mapping[str, str] = {}  # symbol -> Korean name, as the universe was last taken in
        self.yesterday = Closes()
        self.notice: Callable[[str], None] = lambda said: None  # hears who joined and who left
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._reached: dict[str, Instant] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._asked_for: dict[str, Instant] = {}  # coarse timeframe -> the slot whose candles were asked for
        self._from: dict[str, Instant] = {}  # timeframe -> the first bar that a watch, or a market, which is new tells of
        self._judged: dict[str, Instant] = {}  # timeframe -> the newest bar up to which all was judged
        self._change: Change | None = None  # of the universe, not taken in yet
        self._no_room: set[str] = set()  # collected markets for which there was no room
        self._at_work = False
        self._revisions: dict[Partition, int] = {}  # of the stored candles, when they were last looked at
        self._mend_at = self._follow_at = -math.inf
        self._shown_at = -math.inf

    def _room_for(self, symbols: Sequence[str]) -> Room:
        return room_of(self.watches, symbols, self._no_trade != SKIP, FIXED, self.warehouse.memory_mb)

    @property
    def nbytes(self) -> int:
        """What all that is held takes in RAM; `room` is what it may."""
        told = SIGNAL * len(self.recent) + self.news.nbytes + self.delivery.journal.nbytes
        return self.engine.nbytes + told + EVENT * self._queue.qsize()

    # ---- the beginning

    def begin(self) -> None:
        """Load what is stored; tell what closed, up to the newest stored bar, since the journal's end."""
        held = self._stretches()
        self.news = News()
        read: list[tuple[Lane, list[Found]]] = []
        again: dict[str, Instant] = {}  # timeframe -> the first bar that is judged once more
        with self.warehouse.read() as connection:
            known = self._standings(connection)
            self.yesterday = self._closes(connection, known)
        self._revisions = {partition: standing.revision for partition, standing in known.items()}
        for name, lane in self.engine.lanes.items():
            self._from[name] = lane.frame.after(lane.settled(self.clock()))
            self._news_from(lane, held, lane.symbols)
            ended = {watch: one for watch in lane.watches if watch in held and (one := self._just_ended(held[watch])) is not None}
            for watch, one in ended.items():
                self.news.begin(watch.known_by, one.symbols, one.since)
            starts = [_end(ended.get(watch, held[watch])) for watch in lane.watches if watch in held]
            with self.warehouse.read() as connection:
                found = list(load(connection, lane.watches, lane.symbols, min(starts, default=None)))
            lane.load(each.loaded for each in found)
            if starts:  # the warehouse may end before what was judged: REST tells those bars once more
                again[name] = min([*starts, *(gap.last for gap in gaps_of(lane))])
                read.append((lane, found))
            self._say_missing(lane)
        if again:
            told = told_since(self.delivery.journal, min(again.values()))
            self.news.recall(signal for signal in told if signal.timeframe in again and signal.opened_at >= again[signal.timeframe])
        self._out([signal for lane, found in read for signal in self._once_more(lane, found)], late=True)

    def _news_from(self, lane: Lane, held: Mapping[Watch, Watched], symbols: Collection[str]) -> None:
        """From which bar on each watch of a lane tells of these: where it began to; of what is new, from the next bar to close."""
        for watch in lane.watches:
            known = set(held[watch].symbols) if watch in held else set()
            self.news.begin(watch.known_by, [symbol for symbol in symbols if symbol not in known], self._from[lane.frame.name])
            if watch in held:
                self.news.begin(watch.known_by, known & set(symbols), held[watch].since)

    def _once_more(self, lane: Lane, found: Sequence[Found]) -> list[Signal]:
        """Every change at the bars that were loaded, as far as it is news."""
        changed = [
            signal
            for each in found
            for watch in lane.watches
            if watch.takes(each.loaded.symbol)
            for signal in signals(watch, judged_bars(each.loaded, watch, self._no_trade), self.clock())
        ]
        reach = max(watch.lookback for watch in lane.watches) + 1
        judged = {each.loaded.symbol: set(each.loaded.opened_at[reach:].tolist()) for each in found}
        return self.news.again(changed, judged, lane.frame.name, self.clock())

    def _stretches(self) -> dict[Watch, Watched]:
        """What the journal says is watched, by this process, one before, or one beside."""
        return {watch: one for watch in self.watches if (one := self.delivery.journal.stretch(watch.key)) is not None}

    def _just_ended(self, held: Watched) -> Watched | None:
        """The stretch before this one, where of this one nothing is judged yet: its last bar may have been told otherwise since."""
        return self.delivery.journal.ended(held.watch) if held.until is None else None

    def _begin_stretches(self) -> None:
        """Say what is judged from which bar on."""
        watched = []
        for watch in self.watches:
            lane = self.engine.lanes[watch.timeframe]
            symbols = tuple(sorted(gap.symbol for gap in gaps_of(lane) if watch.takes(gap.symbol)))
            held = self.delivery.journal.stretch(watch.key)
            since = _next(held) if held is not None and held.symbols == symbols else self._from[watch.timeframe]
            watched.append(Watched(watch.key, *watch.known_by, watch.fingerprint, watch.timeframe, symbols, since))
        self.delivery.watch(watched)

    # ---- the loop

    async def run(self, events: AsyncIterator[Event]) -> None:
        """Until the events end, or the task is cancelled."""
        self.begin()
        self.health.state = "waiting for the stream"
        self._hold((), True)
        listener = asyncio.create_task(self._listen(events))
        try:
            while await self._turn():
                pass
            listener.result()
        finally:
            for task in (listener, *self._asking.values()):
                task.cancel()
            await asyncio.gather(listener, *self._asking.values(), return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Whether all that has come is done with."""
        return self._queue.empty() and not self._at_work and not self._asking

    @property
    def quiet(self) -> bool:
        """Whether all that was heard is judged, and everybody may be asked what stands."""
        return self.health.state == "live" and self._queue.empty() and not self._at_work

    async def _listen(self, events: AsyncIterator[Event]) -> None:
        try:
            async for event in events:
                while self._queue.qsize() >= WAITING:
                    await asyncio.sleep(LOOK)
                self._queue.put_nowait(event)
        finally:
            self._queue.put_nowait(None)

    async def _turn(self) -> bool:
        """Take what has come, at once; then look at the clock. False when no more comes."""
        waiting = await self._gathered()
        self._at_work = True
        try:
            return await self._take(waiting)
        finally:
            self._at_work = False

    async def _take(self, waiting: Sequence[Waiting]) -> bool:
        messages: list[Heard] = []
        for event in waiting:
            if isinstance(event, Heard):
                messages.append(event)
                continue
            self._hear(messages)
            messages = []
            if event is None:
                return False
            await self._other(event)
        self._hear(messages)
        await self._mend_doubted()
        if self._queue.empty():
            await self._renew(self._look())
        return True

    async def _gathered(self) -> list[Waiting]:
        """All that waits; where nothing does, what comes within LOOK."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK):  # wait_for of Python 3.11 forgets that the task is cancelled, where an event comes just then
                found = [await self._queue.get()]
            while not self._queue.empty():
                found.append(self._queue.get_nowait())
            return found
        return []

    async def _other(self, event: Lost | Joined | Answer | Refusal | Over) -> None:
        match event:
            case Lost(reason=reason, symbols=symbols):
                self._hold(symbols, True)
                self.health.lost += 1
                self.health.state, self.health.reason = "waiting for the stream", reason
            case Joined(symbols=symbols):
                self.health.joined += 1
                self.health.state, self.health.reason = "closing the gap", ""
                began = self.clock()
                await self._close_gap(set(symbols or self.symbols))
                self._hold(symbols, False)
                if not self._away:
                    self._all_joined(None if set(self.symbols) - set(symbols or self.symbols) else began)
            case Answer():
                self._told(event)
            case Refusal():
                self._refused(event)
            case Over(name, slot):
                self._tell([], {name: slot})

    def _all_joined(self, began: float | None) -> None:
        """Everybody is heard; what had closed when `began` all gaps were closed at once, REST has told of days, weeks and months too."""
        self.health.state = "live"
        self._begin_stretches()
        if began is not None:
            told = {name: lane.settled(began) for name, lane in self.engine.coarse.items()}
            self._asked_for.update(told)
            self._tell([], told)

    def _hold(self, symbols: Sequence[str], away: bool) -> None:
        for lane in self.engine.lanes.values():
            lane.hold(symbols or lane.symbols, away)

    @property
    def _away(self) -> bool:
        """Whether anybody is not heard."""
        return any(lane.away.any() for lane in self.engine.lanes.values())

    def _hear(self, heard: Sequence[Heard]) -> None:
        if heard:
            self.health.messages += len(heard)
            self.health.heard_at = heard[-1].received_at
            self._tell(self.engine.hear([message_of(each) for each in heard]), arrived=heard[0].received_at)

    def _look(self) -> float:
        """What the clock closes, and how far all is judged by that; when that was (s UTC)."""
        now = self.clock()
        found = self.engine.tick(now)
        reached = {name: lane.settled(now) for name, lane in self.engine.fine.items() if not lane.doubted} if not self._away else {}
        for name, lane in self.engine.coarse.items():
            if not lane.away.any() and lane.settled(now) > self._asked_for.get(name, NEVER) and name not in self._asking:
                self._asking[name] = asyncio.create_task(self._ask_closed(name, lane))
        self._tell(found, reached)
        if self.timer() >= self._follow_at and "" not in self._asking:
            self._follow_at = self.timer() + FOLLOW
            self._asking[""] = asyncio.create_task(self._follow())
            self._asking[""].add_done_callback(lambda task: self._asking.pop("", None))
        if self.timer() - self._shown_at >= SHOW:
            self._shown_at = self.timer()
            self.health.held = self.nbytes
            self._out(self.engine.peek())
        return now

    # ---- REST

    async def _close_gap(self, symbols: Collection[str]) -> None:
        """Ask for all that closed since the last known bars of these symbols, until everything is answered."""
        gaps = [gap for lane in self.engine.lanes.values() for gap in gaps_of(lane) if gap.symbol in symbols]
        await self._ask_all(gaps, lambda answer: self._told(answer, late=True))
        await self._ask_parts(symbols)

    async def _ask_all(self, left: Sequence[Gap], take: Callable[[Answer], None]) -> None:
        """Ask until all of these are answered, or their markets are gone."""
        while left:
            refused = []
            async for found in close_gaps(self.exchange, left, self.clock, self.expected):
                if isinstance(found, Answer):
                    take(found)
                elif not self._refused(found):
                    refused.append(found.gap)
            left = refused
            if left:
                await asyncio.sleep(AGAIN)

    async def _ask_parts(self, among: Collection[str]) -> None:
        """The candles of four hours of which the forming day, week and month are put together."""
        starts = [lane.frame.floor(int(self.clock())) for lane in self.engine.coarse.values()]
        symbols = dict.fromkeys(symbol for lane in self.engine.coarse.values() for symbol in lane.symbols if symbol in among)
        gaps = [Gap(symbol, PART, min(starts)) for symbol in symbols if starts]
        async for found in close_gaps(self.exchange, gaps, self.clock, self.expected):
            if isinstance(found, Answer):
                for bar in bars_of(found.candles, found.asked_at):
                    self.engine.put_part(found.gap.symbol, bar)

    async def _ask_closed(self, name: str, lane: Lane) -> None:
        """A day, a week or a month has closed: its candles, asked of REST while the other timeframes go on."""
        slot = self._asked_for[name] = lane.settled(self.clock())
        await self._ask_all(gaps_of(lane), self._queue.put_nowait)
        self._queue.put_nowait(Over(name, slot))
        del self._asking[name]

    def _told(self, answer: Answer, late: bool = False) -> None:
        """Judge what REST tells; what was told of these bars before, by a process that is no more, and is not so is taken back."""
        symbol, lane = answer.gap.symbol, self.engine.lanes[answer.gap.frame.name]
        before = _last(lane, symbol)
        found = self.engine.told(lane.frame.name, symbol, answer.candles, answer.asked_at)
        closed = {symbol: range(before + 1, _last(lane, symbol) + 1)}
        self._out(self.news.again(found, closed, lane.frame.name, self.clock()), late=late)

    def _refused(self, refusal: Refusal) -> bool:
        """Whether the exchange says for good that there is no such market."""
        if isinstance(refusal.error, self.gone):
            self._drop(refusal.gap.symbol, refusal.gap.frame.name, str(refusal.error))
            return True
        self.health.reason = str(refusal.error)
        return False

    def _drop(self, symbol: str, name: str, why: str) -> None:
        self.health.dropped[f"{symbol} {name}"] = why
        if name in self.engine.lanes and symbol in self.engine.lanes[name].tape.row:
            self.engine.lanes[name].drop(symbol)

    async def _mend_doubted(self) -> None:
        """Symbols of which an older bar is told otherwise: their last bars are asked again, everything is calculated on those."""
        if self.timer() < self._mend_at:
            return
        for lane in self.engine.lanes.values():
            for symbol in sorted(lane.doubted):
                self._mend_at = self.timer() + AGAIN
                await self._mend(lane, symbol)

    async def _mend(self, lane: Lane, symbol: str) -> None:
        newest = await asyncio.to_thread(self._newest_stored, lane, symbol)
        if newest is None:  # its history is being collected anew
            return
        last = int(lane.tape.last[lane.tape.row[symbol]])
        back = Gap(symbol, lane.frame, min(newest, lane.frame.after(last, -MEND)))
        pages = [found async for found in close_gaps(self.exchange, [back], self.clock, self.expected)]
        told = [page for page in pages if isinstance(page, Answer)]
        if len(told) < len(pages):
            return
        candles, asked_at = Candles.joined([page.candles for page in told]), told[0].asked_at
        found = await asyncio.to_thread(self._reloaded, lane, symbol, candles[candles.opened_at <= lane.settled(asked_at)], asked_at)
        lane.load([found.loaded])
        self.news.recall(told_since(self.delivery.journal, int(found.loaded.opened_at[0])))
        self._out(self._once_more(lane, [found]), late=True)
        self._tell(self.engine.told(lane.frame.name, symbol, candles, asked_at))

    def _newest_stored(self, lane: Lane, symbol: str) -> Instant | None:
        with self.warehouse.read() as connection:
            return standings(connection, [(symbol, lane.frame.name)])[symbol, lane.frame.name].newest

    def _reloaded(self, lane: Lane, symbol: str, told: Candles, asked_at: float) -> Found:
        with self.warehouse.read() as connection:
            return reloaded(connection, lane.watches, symbol, told, lane.settled(asked_at), MEND)

    # ---- the warehouse, as it goes on

    async def _follow(self) -> None:
        """Whose stored candles were revised, rescaled, or reach further back now: what is in RAM stands on others. Who was delisted.
        Who joined the collected universe, and who left it."""
        self._change = None  # what is looked up now counts
        found, self._change, self.yesterday = await asyncio.to_thread(self._looked_up)
        for (symbol, name), standing in found.items():
            if standing.state == DELISTED:
                self._drop(symbol, name, standing.reason or "delisted")
            elif self._revisions.get((symbol, name), standing.revision) != standing.revision and self.engine.lanes[name].knows(symbol):
                self.engine.lanes[name].doubted.add(symbol)
        self._revisions = {partition: standing.revision for partition, standing in found.items()}

    def _looked_up(self) -> tuple[dict[Partition, Standing], Change | None, Closes]:
        with self.warehouse.read() as connection:
            known = self._standings(connection)
            new = change(connection, self.engine, self.symbols, self._no_room, self._told_beside())
            return known, new, self._closes(connection, known)

    def _told_beside(self) -> dict[str, Instant]:
        """Timeframe -> from which bar on another process tells of markets that are not watched here."""
        found = dict[str, Instant]()
        for watch, one in self._stretches().items():
            if not self.engine.lanes[watch.timeframe].tape.row.keys() >= set(one.symbols):
                found[watch.timeframe] = min(one.since, found.get(watch.timeframe, one.since))
        return found

    def _closes(self, connection: duckdb.DuckDBPyConnection, known: Mapping[Partition, Standing]) -> Closes:
        """Of markets of which all up to midnight is stored; what was found once is not looked for again."""
        midnight = int(self.clock()) // DAY * DAY
        found = dict(self.yesterday.of) if self.yesterday.midnight == midnight else {}
        for name, lane in self.engine.lanes.items():
            whole = (
                symbol
                for symbol in lane.symbols
                if symbol not in found and (one := known.get((symbol, name))) is not None and (one.covered_to or 0) >= midnight
            )
            if left := list(whole):
                found |= closes_before(connection, name, left, midnight, TRADED * DAY)
        return Closes(midnight, found)

    async def _renew(self, now: float) -> None:
        """Take in what became of the universe, once all that has closed at `now` is judged and written down: the stretches of the markets
        until now end there, and those of the new ones begin with the next bar."""
        new, settled = self._change, {name: lane.settled(now) for name, lane in self.engine.lanes.items()}
        if new is None or self._away or self._judged != settled or any(lane.doubted for lane in self.engine.lanes.values()):
            return
        self._change = None
        new = self._as_far_as_fits(new)
        self._from = {name: lane.frame.after(settled[name]) for name, lane in self.engine.lanes.items()}
        if new.joined or new.left:
            self._watch_others(new)
        for name, found in new.found.items():
            self._take_in(self.engine.lanes[name], found)
        self._revisions |= new.revisions
        self._begin_stretches()
        heard = {each.loaded.symbol for found in new.found.values() for each in found} - set(new.joined)
        if heard:  # the others are once the stream has joined them
            await self._close_gap(heard)

    def _as_far_as_fits(self, new: Change) -> Change:
        """Nobody joins where there is no room for all."""
        anew = {*new.waived, *new.joined}
        self._no_room -= anew
        self.health.dropped = {what: why for what, why in self.health.dropped.items() if what not in anew}
        try:
            self.room = check_room(self._room_for(_after(self.symbols, new)))
        except OverMemory as error:
            self._no_room |= set(new.joined)
            self.health.dropped |= dict.fromkeys(new.joined, str(error))
            new = new.without_joining()
            self.room = self._room_for(_after(self.symbols, new))
        return new

    def _watch_others(self, new: Change) -> None:
        """Go on with other markets: those that joined are away until the stream tells of them."""
        self.symbols = _after(self.symbols, new)
        self.engine, self.names = self.engine.of(self.symbols), new.names
        if new.joined:
            self._hold(new.joined, True)
        self.health.dropped = {what: why for what, why in self.health.dropped.items() if what.split()[0] not in new.left}
        for lane in self.engine.lanes.values():
            self._say_missing(lane)
        self.wanted.change(self.engine.wanted)
        for symbols, said in ((new.joined, "joined: watched from the next bar to close on"), (new.left, "left: not watched any more")):
            if symbols:
                self.notice(f"{', '.join(symbols)} {said}")

    def _take_in(self, lane: Lane, found: Sequence[Found]) -> None:
        """Markets of which nothing was known in this timeframe: what they say is news from the next bar to close on. Of those that a
        process beside this one took in before: from where it began to tell of them, for it may be no more."""
        lane.load(each.loaded for each in found)
        symbols, held = [each.loaded.symbol for each in found], self._stretches()
        self._news_from(lane, held, symbols)
        for symbol in symbols:
            self.health.dropped.pop(f"{symbol} {lane.frame.name}", None)
        if any(symbol in held[watch].symbols for watch in lane.watches if watch in held for symbol in symbols):
            self.news.recall(told_since(self.delivery.journal, min(int(each.loaded.opened_at[0]) for each in found)))
            self._out(self._once_more(lane, found), late=True)

    def _say_missing(self, lane: Lane) -> None:
        missing = [symbol for symbol in lane.symbols if not lane.knows(symbol) and symbol not in lane.gone]
        self.health.dropped |= {f"{symbol} {lane.frame}": "no candle is stored: collect it with `mdms run`" for symbol in missing}

    def _standings(self, connection: duckdb.DuckDBPyConnection) -> dict[Partition, Standing]:
        return standings(connection, [(symbol, name) for name, lane in self.engine.lanes.items() for symbol in lane.symbols])

    # ---- out

    def _tell(self, found: Sequence[Signal], reached: Mapping[str, Instant] | None = None, arrived: float | None = None) -> None:
        """Hand out what is news; `reached` is the newest bar of each timeframe up to which all is judged."""
        self._judged.update(reached or {})
        self._out(self.news.fresh(found), self._marks(reached or {}))
        if arrived is not None and found:
            self.health.slowest = max(self.health.slowest, self.clock() - arrived)

    def _out(self, found: Sequence[Signal], marks: Mapping[str, Instant] | None = None, late: bool = False) -> None:
        if not found and not marks:
            return
        new = self.delivery.emit(found, marks or None)
        if new:
            self.hand(new)
        self.recent = [*self.recent, *new][-RECENT:]
        closed = sum(not signal.provisional for signal in new)
        self.health.signals += closed
        self.health.provisional += len(new) - closed
        self.health.late += closed if late else 0

    def _marks(self, reached: Mapping[str, Instant]) -> dict[str, Instant]:
        """What is new of it, by the name of each stretch."""
        marks = {}
        for watch in self.watches:
            until = reached.get(watch.timeframe)
            if until is not None and until > self._reached.get(watch.key, NEVER):
                marks[watch.key] = self._reached[watch.key] = until
        return marks


def message_of(heard: Heard) -> Message:
    candle = (heard.open, heard.high, heard.low, heard.close, heard.volume, heard.value)
    return heard.timeframe, heard.symbol, Bar(heard.opened_at, candle, heard.at, heard.received_at)


def gaps_of(lane: Lane) -> list[Gap]:
    """Every symbol of a lane from its last closed bar on."""
    return [
        Gap(symbol, lane.frame, last, lane.complete_to(row))
        for row, (symbol, last) in enumerate(zip(lane.symbols, lane.tape.last.tolist(), strict=True))
        if last != NEVER and lane.known[row]
    ]


def _after(symbols: Sequence[str], new: Change) -> list[str]:
    """The markets that are watched once a change is taken in."""
    return [*(symbol for symbol in symbols if symbol not in new.left), *new.joined]


def _last(lane: Lane, symbol: str) -> Instant:
    """The opening of a symbol's last closed bar, NEVER where it has none."""
    row = lane.tape.row.get(symbol)
    return NEVER if row is None else int(lane.tape.last[row])


def _end(held: Watched) -> Instant:
    """The first bar that may not have been told of: the last judged one, which may have been told otherwise since."""
    return held.since if held.until is None else held.until


def _next(held: Watched) -> Instant:
    return held.since if held.until is None else timeframe(held.timeframe).after(held.until)


def told_since(journal: Journal, since: Instant) -> list[Signal]:
    """The signals of the journal whose bars opened at `since` or later."""
    found: list[Signal] = []
    position = journal.start
    while entries := journal.after(position):
        found += [entry.signal for entry in entries if entry.signal is not None and entry.signal.opened_at >= since]
        position = entries[-1].end
    return found
