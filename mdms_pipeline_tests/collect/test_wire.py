"""Upbit's JSON in, our types out, or the error that the answer stands for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from mdms_pipeline.collect import wire
from mdms_pipeline.market import TIMEFRAMES, instant

# Recorded from api.upbit.com, 2025-07 to 2026-08 (design/upbit.md); the newest candle first, as on the wire.
MARKET = """{"market":"KRW-BTC","korean_name":"비트코인","english_name":"Bitcoin","market_event":{"warning":false,"caution":
{"PRICE_FLUCTUATIONS":false,"TRADING_VOLUME_SOARING":false,"DEPOSIT_AMOUNT_SOARING":false,"GLOBAL_PRICE_DIFFERENCES":false,
"CONCENTRATION_OF_SMALL_ACCOUNTS":false}}}"""
MINUTE = """{"market":"KRW-BTC","candle_date_time_utc":"2026-08-30T04:26:00","candle_date_time_kst":"2026-08-30T13:26:00",
"opening_price":108580000.0,"high_price":108580000.0,"low_price":108536000.0,"trade_price":108580000.0,"timestamp":1788063995383,
"candle_acc_trade_price":1389734.84452,"candle_acc_trade_volume":0.01280224,"unit":1}"""
DAY = """{"market":"KRW-BTC","candle_date_time_utc":"2025-07-29T00:00:00","candle_date_time_kst":"2025-07-29T09:00:00",
"opening_price":162483000.00000000,"high_price":163800000.00000000,"low_price":162034000.00000000,"trade_price":163158000.00000000,
"timestamp":1753833599704,"candle_acc_trade_price":242634976840.02426000,"candle_acc_trade_volume":1487.53432374,
"prev_closing_price":162483000.00000000,"change_price":675000.00000000,"change_rate":0.0041542808}"""
TICKER = """{"market":"KRW-BTC","trade_date":"20250730","trade_time":"170315","trade_timestamp":1753894995076,"opening_price":163248000.0,
"trade_price":162876000.0,"acc_trade_price":137728155832.96,"acc_trade_price_24h":167740032580.71,"acc_trade_volume_24h":1029.27,
"timestamp":1753894995113}"""


def answer(status: int = 200, body: str | bytes = b"[]", **headers: str) -> httpx.Response:
    return httpx.Response(status, content=body, headers=headers)


def read(body: str, parse: Any) -> Any:
    return parse(wire.check(answer(body=body)))


# ---- what was recorded


def test_market_all() -> None:
    others = [{"market": code, "korean_name": "", "english_name": ""} for code in ("BTC-ETH", "KRW-ETH", "USDT-BTC")]
    found = read(f"[{MARKET}, {', '.join(map(json.dumps, others))}]", wire.parse_markets)
    assert found == [wire.Listing("KRW-BTC", "비트코인", "Bitcoin", False), wire.Listing("KRW-ETH", "", "", False)]
    warned = MARKET.replace('"warning":false', '"warning":true')
    assert read(f"[{warned}]", wire.parse_markets)[0].warning


@pytest.mark.parametrize(
    ("body", "opened_at", "columns"),
    [
        (MINUTE, "2026-08-30T04:26:00", (108580000.0, 108580000.0, 108536000.0, 108580000.0, 0.01280224, 1389734.84452)),
        (DAY, "2025-07-29T00:00:00", (162483000.0, 163800000.0, 162034000.0, 163158000.0, 1487.53432374, 242634976840.02426)),
    ],
)
def test_candles(body: str, opened_at: str, columns: tuple[float, ...]) -> None:
    found = read(f"[{body}]", lambda it: wire.parse_candles(it, "KRW-BTC"))
    assert (found.opened_at.tolist(), found.opened_at.dtype) == ([instant(opened_at)], np.int64)
    assert tuple(getattr(found, name)[0] for name in ("open", "high", "low", "close", "volume", "value")) == columns


def test_candles_come_newest_first_and_leave_oldest_first() -> None:
    later = MINUTE.replace("04:26", "04:27").replace('"trade_price":108580000.0', '"trade_price":1.16539E8')
    found = read(f"[{later}, {MINUTE}]", lambda it: wire.parse_candles(it, "KRW-BTC"))
    assert found.close.tolist() == [108580000.0, 116539000.0]
    assert len(read("[]", lambda it: wire.parse_candles(it, "KRW-BTC"))) == 0


def test_tickers() -> None:
    assert read(f"[{TICKER}]", wire.parse_turnovers) == {"KRW-BTC": 167740032580.71}


@pytest.mark.parametrize("name", TIMEFRAMES)
def test_each_timeframe_has_its_path(name: str) -> None:
    found = wire.candles_request("KRW-BTC", name, instant("2026-08-30T04:26:00"), 1000)
    paths = {"1h": "minutes/60", "4h": "minutes/240", "1d": "days", "1w": "weeks", "1M": "months"}
    assert found.path == f"/v1/candles/{paths.get(name, f'minutes/{name[:-1]}')}"
    assert found.params == {"market": "KRW-BTC", "to": "2026-08-30T04:26:00Z", "count": "200"}


# ---- errors

ERRORS = [
    (404, '{"error":{"name":404,"message":"Code not found"}}', wire.NotFound, "Code not found"),
    (404, '{"error":{"name":"not_found","message":"no Route matched with those values"}}', wire.NotFound, "no Route matched"),
    (400, '{"error":{"name":400,"message":"specified unit is not valid."}}', wire.BadRequest, "specified unit is not valid"),
    (400, '{"error":{"name":400,"message":"Missing request parameter error. Check the required parameters!"}}', wire.BadRequest, "Missing"),
    (400, '{"error":{"name":400,"message":"Type mismatch error. Check the parameters type!"}}', wire.BadRequest, "Type mismatch"),
    (400, '{"error":{"name":400,"message":"Invalid parameter. Check the given value!"}}', wire.BadRequest, "Invalid parameter"),
    (429, "Too many API requests.", wire.TooMany, "429"),
    (500, "<html><body>maintenance</body></html>", wire.ServerDown, "500: <html>"),
    (502, "", wire.ServerDown, "502: an empty body"),
    (503, '{"error":"down"}', wire.ServerDown, "503"),
    (200, "<html>welcome to the hotel</html>", wire.Garbled, "not JSON"),
    (200, '[{"market":"KRW-BTC"', wire.Garbled, "not JSON"),
    (418, '{"error":{"message":"blocked for 12 seconds"}}', wire.Blocked, "blocked for 12 seconds"),
    (301, "", wire.BadRequest, "301"),
]


@pytest.mark.parametrize(("status", "body", "error", "said"), ERRORS, ids=[f"{s}-{b[:24]}" for s, b, *_ in ERRORS])
def test_each_answer_has_its_error(status: int, body: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        wire.check(answer(status, body))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


WRONG = ["{}", "[1]", '"no"', "null", "7", '{"error":{"name":500}}', '[{"market":null}]', '[{"market":"KRW-BTC"}]', "[[]]"]


@pytest.mark.parametrize("body", WRONG)
@pytest.mark.parametrize("parse", [wire.parse_markets, wire.parse_turnovers, lambda it: wire.parse_candles(it, "KRW-BTC")])
def test_json_of_another_shape_is_garbled(body: str, parse: Any) -> None:
    with pytest.raises(wire.Garbled):
        read(body, parse)


@pytest.mark.parametrize("parse", [wire.parse_markets, wire.parse_turnovers])
def test_an_exchange_without_markets_is_garbled(parse: Any) -> None:
    """Else one bad answer would make every market of ours delisted."""
    for body in ("[]", '[{"market":"BTC-ETH","korean_name":"","english_name":""}]'):
        with pytest.raises(wire.Garbled):
            read(body, parse)


@pytest.mark.parametrize("bad", ['"trade_price":"?"', '"trade_price":null', '"trade_price":{}'])
def test_a_candle_of_another_shape_is_garbled(bad: str) -> None:
    body = MINUTE.replace('"trade_price":108580000.0', bad)
    with pytest.raises(wire.Garbled):
        read(f"[{body}]", lambda it: wire.parse_candles(it, "KRW-BTC"))
    for time in ('"2026-08-30 04:26:00"', '"2026-08-30T04:26:00+09:00"', '"2026-02-30T04:26:00"', "1788063995383", "null"):
        with pytest.raises(wire.Garbled):
            read(f"[{MINUTE.replace(chr(34) + '2026-08-30T04:26:00' + chr(34), time)}]", lambda it: wire.parse_candles(it, "KRW-BTC"))


def test_candles_of_another_market_are_garbled() -> None:
    with pytest.raises(wire.Garbled, match="another market than KRW-ETH"):
        read(f"[{MINUTE}]", lambda it: wire.parse_candles(it, "KRW-ETH"))


# ---- headers


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("group=candles; min=600; sec=9", ("candles", 9)),
        ("group=candle; min=1800; sec=0", ("candle", 0)),
        ("sec=3;group=market", ("market", 3)),
        (None, None),
        ("", None),
        ("group=candles; min=600", None),
        ("group=candles; min=600; sec=", None),
        ("group=candles; min=600; sec=-1", None),
        ("group=candles; min=600; sec=9.5", None),
        ("group=candles; min=600; sec=many", None),
        ("group=candles; min=600; sec=" + "9" * 400, None),
        ("sec=9", None),
        (";;;=;", None),
    ],
)
def test_remaining_req(header: str | None, found: tuple[str, int] | None) -> None:
    assert wire.remaining(answer(**({} if header is None else {"Remaining-Req": header})).headers) == found


@pytest.mark.parametrize(
    ("body", "headers", "seconds"),
    [
        ('{"error":{"message":"Your IP is blocked for 12 seconds."}}', {}, 12.0),
        ("blocked, 2.5 s to go", {}, 2.5),
        ("blocked: 300sec", {"Retry-After": "9"}, 300.0),
        ("blocked", {"Retry-After": "9"}, 9.0),
        ("blocked", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, wire.BLOCK_SECONDS),
        ("", {}, wire.BLOCK_SECONDS),
    ],
)
def test_how_long_a_block_lasts(body: str, headers: dict[str, str], seconds: float) -> None:
    assert wire.block_seconds(answer(418, body, **headers)) == seconds
