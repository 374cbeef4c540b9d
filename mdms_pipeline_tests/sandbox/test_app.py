"""The wire: shapes, orders, error bodies and headers, to the letter of Upbit's own answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from mdms_pipeline.market import DAY, HOUR, MINUTE, TICKS, TIMEFRAMES, instant
from mdms_pipeline.sandbox import Fault, Sandbox, create_app

from .conftest import NOW, Clock, Get, asking

REMAINING = re.compile(r"group=([a-z\-]+); min=(\d+); sec=(\d+)")  # as pyupbit reads it

CANDLE = [
    "market", "candle_date_time_utc", "candle_date_time_kst", "opening_price", "high_price", "low_price", "trade_price", "timestamp",
    "candle_acc_trade_price", "candle_acc_trade_volume",
]  # fmt: skip
TICKER = [
    "market", "trade_date", "trade_time", "trade_date_kst", "trade_time_kst", "trade_timestamp", "opening_price", "high_price",
    "low_price", "trade_price", "prev_closing_price", "change", "change_price", "change_rate", "signed_change_price",
    "signed_change_rate", "trade_volume", "acc_trade_price", "acc_trade_price_24h", "acc_trade_volume", "acc_trade_volume_24h",
    "highest_52_week_price", "highest_52_week_date", "lowest_52_week_price", "lowest_52_week_date", "timestamp",
]  # fmt: skip
MINUTE_PATHS = {f"/v1/candles/minutes/{n}": n * MINUTE for n in (1, 3, 5, 10, 15, 30, 60, 240)}
EXTRA: dict[str, list[str]] = {
    **{key: ["unit"] for key in MINUTE_PATHS},
    "/v1/candles/seconds": [],
    "/v1/candles/days": ["prev_closing_price", "change_price", "change_rate"],
    "/v1/candles/weeks": ["first_day_of_period"],
    "/v1/candles/months": ["first_day_of_period"],
    "/v1/candles/years": ["first_day_of_period"],
}
DAYS = "/v1/candles/days"
MINUTES = "/v1/candles/minutes/1"


def error(name: int | str, message: str) -> dict[str, Any]:
    return {"error": {"name": name, "message": message}}


# Shapes


def test_market_all(get: Get) -> None:
    short, long = get("/v1/market/all").json(), get("/v1/market/all", is_details="true").json()
    assert [*short[0]] == ["market", "korean_name", "english_name"]
    assert long[0] == {
        "market": "KRW-BTC",
        "korean_name": "비트코인",
        "english_name": "Bitcoin",
        "market_event": {
            "warning": False,
            "caution": {
                "PRICE_FLUCTUATIONS": False,
                "TRADING_VOLUME_SOARING": False,
                "DEPOSIT_AMOUNT_SOARING": False,
                "GLOBAL_PRICE_DIFFERENCES": False,
                "CONCENTRATION_OF_SMALL_ACCOUNTS": False,
            },
        },
    }
    assert "비트코인" in get("/v1/market/all").text
    warned = [row["market"] for row in long if row["market_event"]["warning"]]
    assert warned == ["KRW-ICX"]  # delisted on 2026-12-18


@pytest.mark.parametrize("path", EXTRA)
def test_a_candle_has_exactly_these_fields_in_this_order(path: str, get: Get) -> None:
    rows = get(path, market="KRW-BTC", count=3).json()
    assert len(rows) == 3
    for row in rows:
        assert [*row] == CANDLE + EXTRA[path]
        opened = datetime.fromisoformat(row["candle_date_time_utc"])
        assert opened.isoformat() == row["candle_date_time_utc"]
        assert datetime.fromisoformat(row["candle_date_time_kst"]) - opened == timedelta(hours=9)
        assert type(row["timestamp"]) is int
        assert row["timestamp"] / 1000 - opened.replace(tzinfo=UTC).timestamp() >= 0
        assert row["timestamp"] <= NOW * 1000
        assert all(type(row[name]) is float for name in CANDLE[3:7] + CANDLE[8:])
    assert sorted((row["candle_date_time_utc"] for row in rows), reverse=True) == [row["candle_date_time_utc"] for row in rows]


@pytest.mark.parametrize(("path", "seconds"), MINUTE_PATHS.items())
def test_minutes_open_on_their_grid_and_the_newest_is_forming(path: str, seconds: int, get: Get) -> None:
    rows = get(path, market="KRW-BTC", count=5).json()
    opened = [int(datetime.fromisoformat(row["candle_date_time_utc"]).replace(tzinfo=UTC).timestamp()) for row in rows]
    assert opened == [int(NOW) // seconds * seconds - k * seconds for k in range(5)]
    assert {row["unit"] for row in rows} == {seconds // MINUTE}


@pytest.mark.parametrize(
    ("path", "newest"),
    [("weeks", ["2026-11-16", "2026-11-09"]), ("months", ["2026-11-01", "2026-10-01"]), ("years", ["2026-01-01", "2025-01-01"])],
)
def test_periods_open_on_their_first_day(path: str, newest: list[str], get: Get) -> None:
    rows = get(f"/v1/candles/{path}", market="KRW-ETH", count=2).json()
    assert [row["first_day_of_period"] for row in rows] == newest
    assert [row["candle_date_time_utc"] for row in rows] == [f"{day}T00:00:00" for day in newest]


def test_days_know_the_close_before(get: Get) -> None:
    rows = get(DAYS, market="KRW-XRP", count=50).json()
    for row, before in itertools.pairwise(rows):
        assert row["prev_closing_price"] == before["trade_price"]
        assert row["change_price"] == row["trade_price"] - before["trade_price"]
        assert row["change_rate"] == pytest.approx(row["change_price"] / before["trade_price"], abs=1e-10)
    first = get(DAYS, market="KRW-XRP", count=200, to="2017-10-01T00:00:00Z").json()[-1]
    assert first["candle_date_time_utc"] == "2017-09-25T00:00:00"
    assert first["prev_closing_price"] == first["opening_price"]


def test_days_convert_into_krw(get: Get) -> None:
    own = get(DAYS, market="KRW-XRP", count=2, converting_price_unit="KRW").json()
    assert [*own[0]][-1] == "converted_trade_price"
    assert own[0]["converted_trade_price"] == own[0]["trade_price"]
    other, bitcoin = get(DAYS, market="BTC-ETH", converting_price_unit="KRW").json()[0], get(DAYS, market="KRW-BTC").json()[0]
    assert other["converted_trade_price"] == other["trade_price"] * bitcoin["trade_price"]
    assert get(DAYS, market="KRW-XRP", converting_price_unit="USD").status_code == 400


def test_ticker(get: Get) -> None:
    rows = get("/v1/ticker", markets="KRW-BTC,KRW-XRP").json()
    assert [row["market"] for row in rows] == ["KRW-BTC", "KRW-XRP"]
    day = get(DAYS, market="KRW-BTC").json()[0]
    row = rows[0]
    assert [*row] == TICKER
    assert type(row["timestamp"]) is type(row["trade_timestamp"]) is int
    assert row["trade_timestamp"] == day["timestamp"]
    traded = datetime.fromtimestamp(row["trade_timestamp"] // 1000, UTC)
    assert row["trade_date"] + row["trade_time"] == f"{traded:%Y%m%d%H%M%S}"
    assert row["trade_date_kst"] + row["trade_time_kst"] == f"{traded + timedelta(hours=9):%Y%m%d%H%M%S}"
    for name in ("opening_price", "high_price", "low_price", "trade_price", "prev_closing_price"):
        assert row[name] == day[name]
    assert row["acc_trade_price"] == day["candle_acc_trade_price"]
    assert row["signed_change_price"] == day["change_price"]
    assert row["change"] == ("RISE" if day["change_price"] > 0 else "FALL" if day["change_price"] < 0 else "EVEN")
    assert row["change_price"] == abs(row["signed_change_price"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["highest_52_week_date"])


def test_ticker_all(get: Get, sandbox: Sandbox) -> None:
    krw = get("/v1/ticker/all", quote_currencies="KRW").json()
    assert [row["market"] for row in krw] == [market.code for market in sandbox.markets() if market.quote == "KRW"]
    assert all([*row] == TICKER for row in krw)
    both = get("/v1/ticker/all", quote_currencies="KRW,BTC").json()
    assert {row["market"].split("-")[0] for row in both} == {"KRW", "BTC"}


def test_orderbook_instruments(get: Get) -> None:
    rows = get("/v1/orderbook/instruments", markets="KRW-BTC,KRW-BTT,BTC-ETH").json()
    assert [*rows[0]] == ["market", "quote_currency", "tick_size", "supported_levels"]
    assert [row["tick_size"] for row in rows] == ["1000", "0.000001", "0.00000001"]
    assert rows[0]["quote_currency"] == "KRW"
    assert {float(row["tick_size"]) for row in rows[:2]} <= {tick for _, tick in TICKS}


# `to` and `count`

OPENED = "2026-11-20T05:00:00"


@pytest.mark.parametrize(
    ("to", "newest"),
    [
        ("2026-11-20T05:00:00Z", "2026-11-20T04:59:00"),  # exclusive
        ("2026-11-20T05:00:00", "2026-11-20T04:59:00"),  # naive is UTC
        ("2026-11-20 05:00:00", "2026-11-20T04:59:00"),
        ("2026-11-20T14:00:00+09:00", "2026-11-20T04:59:00"),
        ("2026-11-20 14:00:00+09:00", "2026-11-20T04:59:00"),
        ("2026-11-20T05:00:00.001Z", "2026-11-20T05:00:00"),  # a fraction later
        ("2026-11-20T05:00:00.0", "2026-11-20T04:59:00"),
        ("2026-11-20T05:00:01Z", "2026-11-20T05:00:00"),  # inside a candle: that whole candle
        ("2026-11-20T05:00:59.999999Z", "2026-11-20T05:00:00"),
    ],
)
def test_to_is_exclusive_in_every_format(to: str, newest: str, get: Get) -> None:
    assert get(MINUTES, market="KRW-BTC", to=to).json()[0]["candle_date_time_utc"] == newest


def test_a_to_inside_a_candle_answers_all_of_it(get: Get) -> None:
    inside, after = (
        get("/v1/candles/minutes/60", market="KRW-BTC", to=to).json() for to in ("2026-11-20T05:00:01Z", "2026-11-20T06:00:00Z")
    )
    assert inside == after


def test_to_before_the_listing_is_an_empty_page(get: Get) -> None:
    for path in EXTRA:
        response = get(path, market="KRW-BTC", to="2017-09-01T00:00:00Z")
        assert (response.status_code, response.json()) == (200, [])


def test_to_in_the_future_is_now(get: Get) -> None:
    assert get(MINUTES, market="KRW-BTC", to="2030-01-01T00:00:00Z").json() == get(MINUTES, market="KRW-BTC").json()


def test_count_is_one_unless_told_and_cut_at_200(get: Get) -> None:
    assert [len(get(MINUTES, market="KRW-BTC", **query).json()) for query in ({}, {"count": 7}, {"count": 200}, {"count": 1000})] == [
        1,
        7,
        200,
        200,
    ]


def test_pages_follow_each_other_across_gaps(get: Get, sandbox: Sandbox) -> None:
    seen: list[str] = []
    to = "2026-11-20T00:00:00Z"
    for _ in range(3):
        page = get(MINUTES, market="KRW-FCT2", count=200, to=to).json()
        seen += [row["candle_date_time_utc"] for row in page]
        to = seen[-1]
    assert len(seen) == 600
    whole = sandbox.candles("KRW-FCT2", TIMEFRAMES["1m"], instant("2026-11-20"), 600).opened_at
    assert [instant(text) for text in seen] == whole[::-1].tolist()


# Errors


@pytest.mark.parametrize(
    ("path", "query", "status", "body"),
    [
        (DAYS, {"market": "KRW-NOPE"}, 404, error(404, "Code not found")),
        (DAYS, {"market": "KRW-WAVES"}, 404, error(404, "Code not found")),
        ("/v1/ticker", {"markets": "KRW-BTC,KRW-NOPE"}, 404, error(404, "Code not found")),
        ("/v1/orderbook/instruments", {"markets": "KRW-NOPE"}, 404, error(404, "Code not found")),
        ("/v1/candles/minutes/7", {"market": "KRW-BTC"}, 400, error(400, "specified unit is not valid.")),
        (DAYS, {}, 400, error(400, "Missing request parameter error. Check the required parameters!")),
        ("/v1/ticker", {}, 400, error(400, "Missing request parameter error. Check the required parameters!")),
        ("/v1/ticker/all", {}, 400, error(400, "Missing request parameter error. Check the required parameters!")),
        (MINUTES, {"market": "KRW-BTC", "count": "many"}, 400, error(400, "Type mismatch error. Check the parameters type!")),
        ("/v1/market/all", {"is_details": "perhaps"}, 400, error(400, "Type mismatch error. Check the parameters type!")),
        (MINUTES, {"market": "KRW-BTC", "count": "0"}, 400, error(400, "Invalid parameter. Check the given value!")),
        (MINUTES, {"market": "KRW-BTC", "to": "yesterday"}, 400, error(400, "Invalid parameter. Check the given value!")),
        (MINUTES, {"market": "KRW-BTC", "to": "2026-13-01T00:00:00"}, 400, error(400, "Invalid parameter. Check the given value!")),
    ],
)
def test_errors(path: str, query: dict[str, str], status: int, body: dict[str, Any], get: Get) -> None:
    response = get(path, **query)
    assert (response.status_code, response.json()) == (status, body)
    assert REMAINING.fullmatch(response.headers["Remaining-Req"])


@pytest.mark.parametrize("path", ["/v1/nothing", "/", "/v1/candles/minutes", "/v1/candles/days/", "/v2/market/all"])
def test_an_unknown_route_has_its_own_error_and_no_header(path: str, get: Get) -> None:
    response = get(path)
    assert (response.status_code, response.json()) == (404, error("not_found", "no Route matched with those values"))
    assert "Remaining-Req" not in response.headers


# Limits


@pytest.mark.parametrize(
    ("path", "query", "group"),
    [
        ("/v1/market/all", {}, "market"),
        (DAYS, {"market": "KRW-BTC"}, "candles"),
        ("/v1/ticker", {"markets": "KRW-BTC"}, "ticker"),
        ("/v1/orderbook/instruments", {"markets": "KRW-BTC"}, "orderbook"),
    ],
)
def test_the_header_tells_what_remains(path: str, query: dict[str, str], group: str, clock: Clock) -> None:
    free, limited = asking(Sandbox(clock=clock)), asking(Sandbox(clock=clock, limits=True))
    assert free(path, **query).headers["Remaining-Req"] == f"group={group}; min=600; sec=999"
    assert limited(path, **query).headers["Remaining-Req"] == f"group={group}; min=600; sec=9"
    assert limited(path, **query).headers["Remaining-Req"] == f"group={group}; min=600; sec=8"


def test_above_the_limit_429_and_then_418(clock: Clock) -> None:
    get = asking(Sandbox(clock=clock, limits=True))
    statuses = [get(DAYS, market="KRW-BTC").status_code for _ in range(11)]
    assert statuses == [200] * 10 + [429]
    refused = get(DAYS, market="KRW-BTC")
    assert refused.headers["Content-Type"].startswith("text/plain")
    assert "Retry-After" not in refused.headers
    with pytest.raises(json.JSONDecodeError):
        refused.json()
    clock.now += 1
    assert get(DAYS, market="KRW-BTC").status_code == 200
    while (response := get(DAYS, market="KRW-BTC")).status_code != 418:
        assert response.status_code in (200, 429)
    assert "10 seconds" in response.json()["error"]["message"]
    clock.now += 4
    assert "6 seconds" in get("/v1/market/all").json()["error"]["message"]
    clock.now += 6
    assert get("/v1/market/all").status_code == 200


def test_an_origin_header_costs_the_rate(clock: Clock) -> None:
    get = asking(Sandbox(clock=clock, limits=True))
    origin = {"Origin": "http://example.com"}
    assert [get(DAYS, origin, market="KRW-BTC").status_code for _ in range(2)] == [200, 429]
    clock.now += 10
    assert get(DAYS, origin, market="KRW-BTC").status_code == 200


def test_the_limit_can_drop_while_running(sandbox: Sandbox, get: Get) -> None:
    sandbox.limit("candles", 5)
    assert [get(DAYS, market="KRW-BTC").status_code for _ in range(6)] == [200] * 5 + [429]
    assert get("/v1/market/all").headers["Remaining-Req"] == "group=market; min=600; sec=999"
    sandbox.limit("candles", None)
    assert get(DAYS, market="KRW-BTC").status_code == 200
    with pytest.raises(ValueError, match="candle"):
        sandbox.limit("candle", 5)


def test_the_header_can_be_left_out_or_garbled(sandbox: Sandbox, get: Get) -> None:
    sandbox.header = lambda group, left: None
    assert "Remaining-Req" not in get("/v1/market/all").headers
    sandbox.header = lambda group, left: f"{group} has {left}"
    assert get("/v1/market/all").headers["Remaining-Req"] == "market has 999"


# Faults


def once(fault: Fault, path: str) -> Any:
    """Faults that hit the first request of `path` only."""
    left = [fault]
    return lambda asked, query: left.pop() if asked == path and left else None


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        (Fault.page(), 503, "Service Temporarily Unavailable"),
        (Fault.shape(), 200, '{"data":null}'),
        (Fault(500, "oops", "text/plain"), 500, "oops"),
        (Fault(status=502), 502, ""),
    ],
)
def test_a_fault_replaces_one_answer(fault: Fault, status: int, text: str, sandbox: Sandbox, get: Get) -> None:
    sandbox.faults = once(fault, DAYS)
    response = get(DAYS, market="KRW-BTC")
    assert response.status_code == status
    assert text in response.text
    assert ("Remaining-Req" in response.headers) == (status < 500)
    assert get(DAYS, market="KRW-BTC").json()[0]["market"] == "KRW-BTC"
    assert [entry.status for entry in sandbox.log] == [status, 200]


def test_a_delay_only_delays(sandbox: Sandbox, get: Get) -> None:
    sandbox.faults = once(Fault(delay=0.001), DAYS)
    assert get(DAYS, market="KRW-BTC").status_code == 200


@pytest.mark.parametrize(("fault", "raised"), [(Fault.cut(), httpx.RemoteProtocolError), (Fault.timeout(), httpx.ReadTimeout)])
def test_a_lost_connection_raises_what_httpx_would(fault: Fault, raised: type[Exception], sandbox: Sandbox, get: Get) -> None:
    sandbox.faults = once(fault, DAYS)
    with pytest.raises(raised):
        get(DAYS, market="KRW-BTC")
    assert get(DAYS, market="KRW-BTC").status_code == 200
    assert [entry.status for entry in sandbox.log] == [0, 200]


def test_the_log_tells_what_was_asked(sandbox: Sandbox, get: Get) -> None:
    get(DAYS, market="KRW-BTC", count=2)
    get(DAYS, market="KRW-NOPE")
    assert sandbox.log == [(NOW, DAYS, {"market": "KRW-BTC", "count": "2"}, 200), (NOW, DAYS, {"market": "KRW-NOPE"}, 404)]


def test_a_delisted_market_is_gone_from_every_route(sandbox: Sandbox, get: Get, clock: Clock) -> None:
    sandbox.delist("KRW-ETH", int(NOW) + HOUR)
    assert get(DAYS, market="KRW-ETH").status_code == 200
    clock.now = NOW + HOUR
    assert "KRW-ETH" not in [row["market"] for row in get("/v1/market/all").json()]
    assert get(DAYS, market="KRW-ETH", to="2026-01-01T00:00:00Z").json() == error(404, "Code not found")
    assert get("/v1/ticker", markets="KRW-BTC,KRW-ETH").json() == error(404, "Code not found")
    assert "KRW-ETH" not in [row["market"] for row in get("/v1/ticker/all", quote_currencies="KRW").json()]


def test_many_clients_at_once_get_what_one_gets(sandbox: Sandbox) -> None:
    questions = [(path, {"market": code, "count": 20}) for path in EXTRA for code in ("KRW-BTC", "KRW-DOGE", "KRW-CBK")]

    async def asked(at_once: int) -> list[str]:
        gate = asyncio.Semaphore(at_once)
        app = create_app(Sandbox(clock=sandbox.clock))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://sandbox") as client:

            async def one(path: str, query: dict[str, Any]) -> str:
                async with gate:
                    return (await client.get(path, params=query)).text

            return await asyncio.gather(*(one(path, query) for path, query in questions))

    assert asyncio.run(asked(10)) == asyncio.run(asked(1))


def test_seconds_reach_back_three_months_only(get: Get) -> None:
    old, recent = (f"{datetime.fromtimestamp(NOW - days * DAY, UTC):%Y-%m-%dT%H:%M:%SZ}" for days in (91, 89))
    assert get("/v1/candles/seconds", market="KRW-BTC", to=old).json() == []
    assert len(get("/v1/candles/seconds", market="KRW-BTC", to=recent, count=200).json()) == 200
