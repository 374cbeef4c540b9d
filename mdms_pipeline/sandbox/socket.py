"""The sandbox's WebSocket: Upbit's `/websocket/v1`, for `app.py` to mount. What is told and when, `feed.py` knows.

A connection lives in two tasks: `_hear` reads requests, `_tell` looks at the clock once a beat; whichever ends first ends it.

    [{"ticket":"a uuid"},{"type":"candle.1m","codes":["KRW-BTC"],"is_only_realtime":true},{"format":"SIMPLE"}]

Known from Upbit's documentation: requests, types, formats, fields, names of errors, limits, the end of an idle connection, `PING`.
Ours, because nobody has published it: that a request over the limit is answered by the error TOO_MANY_REQUESTS and the end of the
connection, and that of a handshake over the limit the status is REST's 429. Not here: the order book, which the sandbox has not.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import to_thread
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from mdms_pipeline.sandbox.exchange import Sandbox
from mdms_pipeline.sandbox.feed import TYPES, Feed
from mdms_pipeline.sandbox.limits import CONNECT, MESSAGE, MESSAGES_PER_MINUTE, Verdict
from mdms_pipeline.sandbox.messages import Message, SocketFault, Told
from mdms_pipeline.sandbox.rows import compact

PATH = "/websocket/v1"
UP = b'{"status":"UP"}'
FORMATS = ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
BREATH = 64  # messages sent before other tasks have their turn
CLOSED = 1000  # the close code of every end that the exchange brings about

# Short names of the formats SIMPLE; Upbit docs.
SHORT = {
    "type": "ty", "code": "cd", "stream_type": "st", "timestamp": "tms", "opening_price": "op", "high_price": "hp", "low_price": "lp",
    "trade_price": "tp", "candle_date_time_utc": "cdttmu", "candle_date_time_kst": "cdttmk", "candle_acc_trade_volume": "catv",
    "candle_acc_trade_price": "catp", "prev_closing_price": "pcp", "change": "c", "change_price": "cp", "change_rate": "cr",
    "signed_change_price": "scp", "signed_change_rate": "scr", "trade_volume": "tv", "acc_trade_price": "atp",
    "acc_trade_price_24h": "atp24h", "acc_trade_volume": "atv", "acc_trade_volume_24h": "atv24h", "trade_date": "tdt", "trade_time": "ttm",
    "trade_timestamp": "ttms", "ask_bid": "ab", "acc_ask_volume": "aav", "acc_bid_volume": "abv", "highest_52_week_price": "h52wp",
    "highest_52_week_date": "h52wdt", "lowest_52_week_price": "l52wp", "lowest_52_week_date": "l52wdt", "market_state": "ms",
    "delisting_date": "dd", "sequential_id": "sid", "best_ask_price": "bap", "best_ask_size": "bas", "best_bid_price": "bbp",
    "best_bid_size": "bbs", "method": "mthd", "result": "rslt", "ticket": "tckt", "codes": "cds",
}  # fmt: skip
SHORT_OF_TRADE = {**SHORT, "trade_date": "td"}

WRONG_FORMAT = ("WRONG_FORMAT", "The format is incorrect.")
NO_TICKET = ("NO_TICKET", "The ticket does not exist or is invalid.")
NO_TYPE = ("NO_TYPE", "The type field does not exist.")
NO_CODES = ("NO_CODES", "The codes field does not exist.")
EMPTY_CODES = ("INVALID_PARAM", "The codes field is empty.")
TOO_MANY = ("TOO_MANY_REQUESTS", "Too many requests.")


class Refused(Exception):
    """The request is wrong: (name, message) of the error that answers it."""


@dataclass(frozen=True)
class Wanted:
    """One part of a request: what of which markets."""

    type: str
    codes: tuple[str, ...]
    only_snapshot: bool = False
    only_realtime: bool = False


@dataclass(frozen=True)
class Asked:
    """A request. `format` is None where it says none; `lists` asks what is subscribed, and subscribes nothing."""

    ticket: str
    wanted: tuple[Wanted, ...] = ()
    format: str | None = None
    lists: bool = False


def read(text: str) -> Asked:
    """What a request asks for, else Refused."""
    try:
        parts = json.loads(text)
    except ValueError:
        raise Refused(*WRONG_FORMAT) from None
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise Refused(*WRONG_FORMAT)
    ticket = next((part["ticket"] for part in parts if "ticket" in part), None)
    if not isinstance(ticket, str) or not ticket:
        raise Refused(*NO_TICKET)
    form = next((part["format"] for part in parts if "format" in part), None)
    if form is not None and form not in FORMATS:
        raise Refused("INVALID_PARAM", f"format {form} is not supported.")
    if any(part.get("method") == "LIST_SUBSCRIPTIONS" for part in parts):
        return Asked(ticket, (), form, lists=True)
    wanted = tuple(read_type(part) for part in parts if not part.keys() & {"ticket", "format"})
    if not wanted:
        raise Refused(*NO_TYPE)
    return Asked(ticket, wanted, form)


def read_type(part: Mapping[str, Any]) -> Wanted:
    """`{"type":"trade","codes":["KRW-BTC"],"is_only_snapshot":true}`"""
    kind, codes = part.get("type"), part.get("codes")
    if not isinstance(kind, str):
        raise Refused(*NO_TYPE)
    if kind not in TYPES:
        raise Refused("INVALID_PARAM", f"type {kind} is not supported.")
    if codes is None:
        raise Refused(*NO_CODES)
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise Refused(*WRONG_FORMAT)
    if not codes:
        raise Refused(*EMPTY_CODES)
    return Wanted(kind, tuple(codes), part.get("is_only_snapshot") is True, part.get("is_only_realtime") is True)


def spell(row: Mapping[str, Any], format: str) -> bytes:
    """A row with the field names of DEFAULT as `format` writes it."""
    if format.startswith("SIMPLE"):
        short = SHORT_OF_TRADE if row.get("type") == "trade" else SHORT
        row = {short[name]: value for name, value in row.items()}
    text = compact(row)
    return (f"[{text}]" if format.endswith("LIST") else text).encode()


@dataclass
class Allowance:
    """How many requests one connection made in this second and this minute of the exchange's clock."""

    per_second: int | None
    used: dict[int, tuple[int, int]] = field(default_factory=dict)  # length of the period (s): (which one, requests)

    def take(self, now: float) -> bool:
        """Count a request. False where it is one too many."""
        if self.per_second is None:
            return True
        return all([self._within(1, self.per_second, now), self._within(60, MESSAGES_PER_MINUTE, now)])

    def _within(self, period: int, most: int, now: float) -> bool:
        which, (counted, used) = int(now) // period, self.used.get(period, (0, 0))
        used = used + 1 if counted == which else 1
        self.used[period] = (which, used)
        return used <= most


class Connection:
    """One client: what it subscribed, and in which format it is told."""

    def __init__(self, sandbox: Sandbox, number: int, socket: WebSocket, workers: anyio.CapacityLimiter) -> None:
        self.sandbox, self.number, self.socket, self.workers = sandbox, number, socket, workers
        self.format = FORMATS[0]
        self.wanted: tuple[Wanted, ...] = ()
        self.feed: Feed | None = None
        self.beats = 0
        self.silent = False
        self.allowance = Allowance(sandbox.limits.per_second[MESSAGE])
        self.active_at = anyio.current_time()  # when something last went either way
        self.turn = anyio.Lock()  # a snapshot and a beat do not mix

    async def live(self) -> None:
        """Until the client leaves, or the exchange ends it."""
        async with anyio.create_task_group() as tasks:

            async def first(task: Callable[[], Awaitable[None]]) -> None:
                with suppress(WebSocketDisconnect):
                    await task()
                tasks.cancel_scope.cancel()

            tasks.start_soon(first, self._hear)
            tasks.start_soon(first, self._tell)

    async def _hear(self) -> None:
        """Read requests; one that is wrong ends the connection."""
        while True:
            received = await self.socket.receive()
            if received["type"] == "websocket.disconnect":
                return
            if self.silent:
                continue
            self.active_at = anyio.current_time()
            text = received.get("text") or (received.get("bytes") or b"").decode(errors="replace")
            if text == "PING":
                await self._send(UP)
            elif not await self._answer(text):
                return

    async def _answer(self, text: str) -> bool:
        """Do what a request asks for. False where it is refused, which ends the connection."""
        try:
            if not self.allowance.take(self.sandbox.clock()):
                raise Refused(*TOO_MANY)
            asked = read(text)
        except Refused as refusal:
            self.sandbox.note(PATH, {"request": text}, 400)
            await self._end(*refusal.args)
            return False
        self.sandbox.note(PATH, {"request": text}, 200)
        self.format = asked.format or (self.format if asked.lists else FORMATS[0])
        if asked.lists:
            await self._send(spell(self._subscribed(asked.ticket), self.format))
            return True
        return await self._subscribe(asked.wanted)

    async def _subscribe(self, wanted: tuple[Wanted, ...]) -> bool:
        """In place of whatever was subscribed before."""
        async with self.turn:
            self.wanted = wanted
            self.feed = Feed(self.sandbox, joined(wanted))
            types = {part.type for part in wanted if not part.only_realtime}
            told = await to_thread.run_sync(self.feed.snapshot, types, limiter=self.workers)
            return await self._pass_on(told, "SNAPSHOT")

    async def _tell(self) -> None:
        """Once a beat: what is new. A beat that took longer is followed by the next at once."""
        while True:
            begun = anyio.current_time()
            async with self.turn:
                if not await self._beat():
                    return
            await anyio.sleep(max(0.0, begun + self.sandbox.beat - anyio.current_time()))

    async def _beat(self) -> bool:
        """False where it ended the connection."""
        if self.feed is not None and not await self._pass_on_news(self.feed):
            return False
        if anyio.current_time() - self.active_at > self.sandbox.idle and not self.silent:
            await self._close()
            return False
        return True

    async def _pass_on_news(self, feed: Feed) -> bool:
        """Stride by stride, so that a clock that jumps far fills no memory. False where it ended the connection."""
        only_snapshot = {part.type for part in self.wanted if part.only_snapshot}
        news = feed.news()
        while not self.silent and (told := await to_thread.run_sync(next, news, None, limiter=self.workers)) is not None:
            if not await self._pass_on([message for message in told if message.type not in only_snapshot], "REALTIME"):
                return False
        return True

    async def _pass_on(self, messages: list[Message], stream_type: str) -> bool:
        """Send these, or what a fault makes of them. False where it ended the connection."""
        told = Told(self.number, self.beats, messages)
        self.beats += 1
        fault = (self.sandbox.socket_faults(told) if self.sandbox.socket_faults else None) or SocketFault()
        for i, message in enumerate(fault.alter(messages)):
            await self._send(spell({**message.row, "stream_type": stream_type}, self.format))
            if i % BREATH == BREATH - 1:
                await anyio.sleep(0)
        self.silent = fault.silent
        if fault.error is not None:
            await self._end(*fault.error)
        return not fault.cut and fault.error is None

    async def _end(self, name: str, message: str) -> None:
        """An error message, then the end."""
        await self._send(compact({"error": {"name": name, "message": message}}).encode())
        await self._close()

    async def _close(self) -> None:
        if self.socket.application_state is not WebSocketState.DISCONNECTED:
            await self.socket.close(CLOSED)

    async def _send(self, body: bytes) -> None:
        """WebSocketDisconnect where the other task has just ended the connection, or the client has."""
        if self.socket.application_state is WebSocketState.DISCONNECTED:
            raise WebSocketDisconnect
        await self.socket.send_bytes(body)
        self.active_at = anyio.current_time()

    def _subscribed(self, ticket: str) -> dict[str, Any]:
        """The answer to LIST_SUBSCRIPTIONS."""
        kind, codes = ("ty", "cds") if self.format.startswith("SIMPLE") else ("type", "codes")
        result = [{kind: part.type, codes: list(part.codes)} for part in self.wanted]
        return {"method": "LIST_SUBSCRIPTIONS", "result": result, "ticket": ticket}


def joined(wanted: Sequence[Wanted]) -> dict[str, list[str]]:
    """Type -> codes of all parts of a request."""
    codes: dict[str, list[str]] = {}
    for part in wanted:
        codes.setdefault(part.type, []).extend(part.codes)
    return codes


def serving(
    sandbox: Sandbox, workers: anyio.CapacityLimiter, stopped: Callable[[Verdict], Response]
) -> Callable[[WebSocket], Awaitable[None]]:
    """The endpoint: handshake under the limit, then a connection. `stopped` is REST's answer to who asks too often."""
    accepted = 0

    async def serve(socket: WebSocket) -> None:
        nonlocal accepted
        verdict = sandbox.limits.ask(CONNECT, sandbox.clock(), "origin" in socket.headers)
        sandbox.note(PATH, {}, 101 if verdict.status == 200 else verdict.status)
        if verdict.status != 200:
            await socket.send_denial_response(stopped(verdict))
            return
        number, accepted = accepted, accepted + 1
        await socket.accept()
        await Connection(sandbox, number, socket, workers).live()

    return serve
