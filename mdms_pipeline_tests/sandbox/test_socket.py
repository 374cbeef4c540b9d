"""The WebSocket on the wire: requests, formats, errors, limits, the end of a connection, and every fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from mdms_pipeline.market import TIMEFRAMES
from mdms_pipeline.sandbox import Sandbox, SocketFault, Told, create_app
from mdms_pipeline.sandbox.feed import TYPES
from mdms_pipeline.sandbox.serve import listening
from mdms_pipeline.sandbox.socket import PATH, Allowance

from .conftest import NOW, Clock

PATIENCE = 20.0  # s for what must come, or we hang
CANDLE = [
    "type", "code", "candle_date_time_utc", "candle_date_time_kst", "opening_price", "high_price", "low_price", "trade_price",
    "candle_acc_trade_volume", "candle_acc_trade_price", "timestamp", "stream_type",
]  # fmt: skip
FIELDS = {
    "candle": CANDLE,
    "trade": [
        "type", "code", "timestamp", "trade_date", "trade_time", "trade_timestamp", "trade_price", "trade_volume", "ask_bid",
        "prev_closing_price", "change", "change_price", "sequential_id", "best_ask_price", "best_ask_size", "best_bid_price",
        "best_bid_size", "stream_type",
    ],
    "ticker": [
        "type", "code", "opening_price", "high_price", "low_price", "trade_price", "prev_closing_price", "acc_trade_price", "change",
        "change_price", "signed_change_price", "change_rate", "signed_change_rate", "ask_bid", "trade_volume", "acc_trade_volume",
        "trade_date", "trade_time", "trade_timestamp", "acc_ask_volume", "acc_bid_volume", "highest_52_week_price",
        "highest_52_week_date", "lowest_52_week_price", "lowest_52_week_date", "market_state", "delisting_date", "timestamp",
        "acc_trade_price_24h", "acc_trade_volume_24h", "stream_type",
    ],
}  # fmt: skip
SIMPLE = {
    "candle": ["ty", "cd", "cdttmu", "cdttmk", "op", "hp", "lp", "tp", "catv", "catp", "tms", "st"],
    "trade": ["ty", "cd", "tms", "td", "ttm", "ttms", "tp", "tv", "ab", "pcp", "c", "cp", "sid", "bap", "bas", "bbp", "bbs", "st"],
    "ticker": [
        "ty", "cd", "op", "hp", "lp", "tp", "pcp", "atp", "c", "cp", "scp", "cr", "scr", "ab", "tv", "atv", "tdt", "ttm", "ttms", "aav",
        "abv", "h52wp", "h52wdt", "l52wp", "l52wdt", "ms", "dd", "tms", "atp24h", "atv24h", "st",
    ],
}  # fmt: skip


class Client:
    """One connection of a client that knows nothing of ours."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def ask(self, *parts: dict[str, Any], format: str | None = None) -> None:
        self.socket.send(json.dumps([{"ticket": "a"}, *parts, *([{"format": format}] if format else [])]))

    def subscribe(self, kind: str, *codes: str, format: str | None = None, **options: bool) -> None:
        self.ask({"type": kind, "codes": list(codes), **options}, format=format)

    def hear(self) -> Any:
        """The next frame, which is binary."""
        frame = self.socket.recv(timeout=PATIENCE)
        assert isinstance(frame, bytes)
        return json.loads(frame)

    def ping(self) -> None:
        """The answer to PING is next: nothing else was told."""
        self.socket.send("PING")
        assert self.hear() == {"status": "UP"}

    def end(self) -> ConnectionClosed:
        """How the connection ends; nothing more is told."""
        with pytest.raises(ConnectionClosed) as error:
            self.hear()
        return error.value


@pytest.fixture
def quick(sandbox: Sandbox) -> Sandbox:
    """Looks at its clock 200 times a second."""
    sandbox.beat = 0.005
    return sandbox


class Present:
    """An ASGI app in whose place each test puts its own: one server for all of them."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Present, str]]:
    present = Present()
    with listening(present) as address:
        yield present, address


@pytest.fixture
def url(server: tuple[Present, str], quick: Sandbox) -> str:
    present, address = server
    present.app = create_app(quick)
    return address.replace("http", "ws") + PATH


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with connect(url) as socket:
        yield Client(socket)


# ---- what is told


@pytest.mark.parametrize("form", ["DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_message_has_exactly_these_fields(client: Client, clock: Clock, kind: str, form: str) -> None:
    client.subscribe(kind, "KRW-BTC", format=form)
    fields = (SIMPLE if form.startswith("SIMPLE") else FIELDS)[kind.split(".")[0]]
    for stream_type in ("SNAPSHOT", "REALTIME"):
        told = client.hear()
        if form.endswith("LIST"):
            (told,) = told
        assert sorted(told) == sorted(fields)
        assert told[fields[0]] == kind
        assert told[fields[-1]] == stream_type
        clock.now += 60


def test_a_candle_is_spelled_as_the_exchange_does(client: Client) -> None:
    """Fields in the order of Upbit's documentation, and the numbers of REST."""
    client.subscribe("candle.60m", "KRW-BTC")
    told = client.hear()
    assert list(told) == CANDLE
    candles, last_ms = Sandbox(clock=lambda: NOW).bars("KRW-BTC", TIMEFRAMES["1h"], int(NOW) + 1, 1)
    prices = [told[name] for name in ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume", "timestamp")]
    assert prices == [
        *(float(column[0]) for column in (candles.open, candles.high, candles.low, candles.close, candles.volume)),
        last_ms[0],
    ]
    assert told["candle_acc_trade_price"] == candles.value[0]
    assert (told["candle_date_time_utc"], told["candle_date_time_kst"]) == ("2026-11-22T09:00:00", "2026-11-22T18:00:00")


def test_only_a_snapshot(client: Client, clock: Clock) -> None:
    client.subscribe("candle.1m", "KRW-BTC", is_only_snapshot=True)
    assert client.hear()["stream_type"] == "SNAPSHOT"
    clock.now += 60
    client.subscribe("candle.3m", "KRW-BTC")  # answered after the beats that told nothing
    assert client.hear()["type"] == "candle.3m"


def test_only_what_is_new(client: Client, clock: Clock) -> None:
    client.subscribe("candle.60m", "KRW-BTC", is_only_realtime=True)
    client.ping()
    clock.now += 60
    assert client.hear()["stream_type"] == "REALTIME"


def test_a_second_request_replaces_the_first(client: Client, clock: Clock) -> None:
    client.subscribe("candle.60m", "KRW-BTC", format="SIMPLE")
    assert client.hear()["ty"] == "candle.60m"
    client.subscribe("candle.240m", "KRW-ETH")  # the format is DEFAULT again
    heard = [client.hear()]
    for _ in range(4):
        clock.now += 60
        heard.append(client.hear())
    assert {(told["type"], told["code"]) for told in heard} == {("candle.240m", "KRW-ETH")}


def test_several_parts_of_a_request(client: Client) -> None:
    client.ask({"type": "candle.1m", "codes": ["KRW-BTC"]}, {"type": "ticker", "codes": ["KRW-ETH", "KRW-BTC"]})
    heard = [client.hear() for _ in range(3)]
    assert {(told["type"], told["code"]) for told in heard} == {("candle.1m", "KRW-BTC"), ("ticker", "KRW-ETH"), ("ticker", "KRW-BTC")}
    client.ping()


def test_unknown_codes_are_passed_over_in_silence(client: Client, clock: Clock) -> None:
    client.subscribe("candle.1m", "KRW-NOPE", "krw-btc")
    client.ping()
    clock.now += 600
    client.ping()


@pytest.mark.parametrize(("form", "fields"), [(None, ("method", "result", "ticket")), ("SIMPLE", ("mthd", "rslt", "tckt"))])
def test_what_is_subscribed(client: Client, form: str | None, fields: tuple[str, str, str]) -> None:
    client.subscribe("candle.1m", "KRW-NOPE", "KRW-NONE")
    client.ask({"method": "LIST_SUBSCRIPTIONS"}, format=form)
    kind, codes = ("ty", "cds") if form else ("type", "codes")
    subscribed = [{kind: "candle.1m", codes: ["KRW-NOPE", "KRW-NONE"]}]
    assert client.hear() == dict(zip(fields, ("LIST_SUBSCRIPTIONS", subscribed, "a"), strict=True))


def test_fast_forward_leaves_no_candle_out(client: Client, clock: Clock) -> None:
    client.subscribe("candle.1m", "KRW-BTC")
    opened = [client.hear()["candle_date_time_utc"]]
    clock.now += 10 * 3600
    while opened[-1] != "2026-11-22T19:30:00":
        opened.append(client.hear()["candle_date_time_utc"])
    assert len(set(opened)) == 10 * 60 + 1
    assert opened == sorted(opened)


# ---- errors


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ("hello", "WRONG_FORMAT"),
        ("{}", "WRONG_FORMAT"),
        ("[]", "WRONG_FORMAT"),
        ("[1]", "WRONG_FORMAT"),
        ('[{"type":"ticker","codes":["KRW-BTC"]}]', "NO_TICKET"),
        ('[{"ticket":""},{"type":"ticker","codes":["KRW-BTC"]}]', "NO_TICKET"),
        ('[{"ticket":"a"}]', "NO_TYPE"),
        ('[{"ticket":"a"},{"codes":["KRW-BTC"]}]', "NO_TYPE"),
        ('[{"ticket":"a"},{"type":"ticker"}]', "NO_CODES"),
        ('[{"ticket":"a"},{"type":"ticker","codes":[]}]', "INVALID_PARAM"),
        ('[{"ticket":"a"},{"type":"ticker","codes":"KRW-BTC"}]', "WRONG_FORMAT"),
        ('[{"ticket":"a"},{"type":"candle.1d","codes":["KRW-BTC"]}]', "INVALID_PARAM"),
        ('[{"ticket":"a"},{"type":"orderbook","codes":["KRW-BTC"]}]', "INVALID_PARAM"),
        ('[{"ticket":"a"},{"type":"ticker","codes":["KRW-BTC"]},{"format":"XML"}]', "INVALID_PARAM"),
    ],
)
def test_a_wrong_request_is_answered_by_an_error_and_the_end(client: Client, request_: str, name: str) -> None:
    client.socket.send(request_)
    error = client.hear()["error"]
    assert error["name"] == name
    assert error["message"]
    end = client.end()
    assert isinstance(end, ConnectionClosedOK)
    assert end.rcvd is not None
    assert end.rcvd.code == 1000


def test_binary_requests_are_read_too(client: Client) -> None:
    client.socket.send(b"PING")
    assert client.hear() == {"status": "UP"}


# ---- limits


def test_an_idle_connection_is_closed(quick: Sandbox, client: Client) -> None:
    client.ping()
    quick.idle = 0.02
    end = client.end()
    assert end.rcvd is not None
    assert end.rcvd.code == 1000


def test_five_connections_a_second(quick: Sandbox, url: str, clock: Clock) -> None:
    quick.limit("websocket-connect", 5)
    for _ in range(5):
        connect(url).close()
    with pytest.raises(InvalidStatus) as error:
        connect(url)
    assert error.value.response.status_code == 429
    assert [logged.status for logged in quick.log] == [101] * 5 + [429]
    clock.now += 1
    connect(url).close()


def test_who_does_not_stop_is_blocked(quick: Sandbox, url: str) -> None:
    quick.limit("websocket-connect", 0)
    statuses = []
    for _ in range(21):
        with pytest.raises(InvalidStatus) as error:
            connect(url)
        statuses.append(error.value.response.status_code)
    assert statuses == [429] * 19 + [418] * 2
    assert b"blocked for 10 seconds" in (error.value.response.body or b"")


def test_an_origin_header_is_a_browser(quick: Sandbox, url: str) -> None:
    quick.limit("websocket-connect", 5)
    connect(url, additional_headers={"Origin": "https://example.org"}).close()
    with pytest.raises(InvalidStatus):
        connect(url, additional_headers={"Origin": "https://example.org"})
    connect(url).close()


def test_five_requests_a_second(quick: Sandbox, url: str, clock: Clock) -> None:
    quick.limit("websocket-message", 5)
    with connect(url) as socket:
        client = Client(socket)
        for _ in range(5):
            client.subscribe("ticker", "KRW-NOPE")
        client.ping()
        clock.now += 1
        client.subscribe("ticker", "KRW-NOPE")
        client.ping()
        for _ in range(5):
            client.subscribe("ticker", "KRW-NOPE")
        assert client.hear()["error"]["name"] == "TOO_MANY_REQUESTS"
        assert isinstance(client.end(), ConnectionClosedOK)


def test_a_hundred_requests_a_minute() -> None:
    allowance = Allowance(5)
    assert [allowance.take(60 * 1000 + i / 4) for i in range(101)] == [True] * 100 + [False]
    assert not allowance.take(60 * 1000 + 59)
    assert allowance.take(60 * 1001)


def test_without_limits_anything_goes() -> None:
    assert all(Allowance(None).take(0.0) for _ in range(1000))


# ---- faults


def fault_at(beat: int, fault: SocketFault) -> Any:
    return lambda told: fault if told.beat == beat else None


def test_a_connection_that_is_cut(quick: Sandbox, client: Client, clock: Clock) -> None:
    quick.socket_faults = fault_at(1, SocketFault.cutting())
    client.subscribe("candle.1m", "KRW-BTC")
    client.hear()
    clock.now += 60
    end = client.end()
    assert isinstance(end, ConnectionClosedError)
    assert end.rcvd is None


def test_a_connection_that_falls_silent(quick: Sandbox, client: Client, clock: Clock, url: str) -> None:
    quick.socket_faults = lambda told: SocketFault.silence() if told.connection == 0 else None
    client.subscribe("candle.1m", "KRW-BTC")
    client.socket.send("PING")
    with connect(url) as socket:  # another one goes on
        other = Client(socket)
        for _ in range(3):
            other.subscribe("candle.1m", "KRW-BTC")
            other.hear()
            other.ping()
    with pytest.raises(TimeoutError):
        client.socket.recv(timeout=0.05)
    client.socket.close()


def test_messages_that_are_repeated(quick: Sandbox, client: Client, clock: Clock) -> None:
    quick.socket_faults = fault_at(1, SocketFault.repeating())
    client.subscribe("candle.1m", "KRW-BTC")
    client.hear()
    clock.now += 60
    heard = [client.hear() for _ in range(4)]
    assert heard[:2] == heard[2:]
    assert heard[0] != heard[1]


def test_messages_out_of_order(quick: Sandbox, client: Client, clock: Clock) -> None:
    quick.socket_faults = fault_at(1, SocketFault.backwards())
    client.subscribe("candle.1m", "KRW-BTC")
    client.hear()
    clock.now += 60
    assert [client.hear()["candle_date_time_utc"] for _ in range(2)] == ["2026-11-22T09:31:00", "2026-11-22T09:30:00"]


def test_the_final_state_that_is_never_told(quick: Sandbox, client: Client, clock: Clock) -> None:
    quick.socket_faults = fault_at(1, SocketFault.without_finals())
    client.subscribe("candle.1m", "KRW-BTC")
    client.hear()
    clock.now += 60
    assert client.hear()["candle_date_time_utc"] == "2026-11-22T09:31:00"
    client.ping()


def test_an_error_message_out_of_nothing(quick: Sandbox, client: Client, clock: Clock) -> None:
    quick.socket_faults = fault_at(1, SocketFault.saying("SERVER_ERROR", "maintenance"))
    client.subscribe("candle.1m", "KRW-BTC")
    client.hear()
    clock.now += 60
    assert client.hear() == {"error": {"name": "SERVER_ERROR", "message": "maintenance"}}
    assert isinstance(client.end(), ConnectionClosedOK)


def test_a_candle_that_changes_after_its_close(quick: Sandbox, client: Client, clock: Clock) -> None:
    client.subscribe("candle.1m", "KRW-BTC")
    client.hear()
    clock.now += 60
    first, _ = client.hear(), client.hear()
    quick.correct("KRW-BTC", TIMEFRAMES["1m"], int(NOW) // 60 * 60, close=first["trade_price"] + 1000)
    assert client.hear() == {**first, "trade_price": first["trade_price"] + 1000}


def test_a_fault_sees_what_would_be_told(quick: Sandbox, client: Client, clock: Clock) -> None:
    seen: list[Told] = []
    quick.socket_faults = lambda told: seen.append(told)
    client.subscribe("candle.1m", "KRW-BTC")
    client.hear()
    clock.now += 60
    client.hear()
    client.hear()
    assert [(told.connection, told.beat, len(told.messages)) for told in seen] == [(0, 0, 1), (0, 1, 2)]
    assert [message.final for message in seen[1].messages] == [True, False]
