"""The sandbox on the wire: Upbit's public REST as a Starlette app, and the WebSocket of `socket.py`.

One Route per path, one function per answer, one way in (`serve`).

Every request passes `serve`: limit, fault, answer, log. Answers are bytes made in a worker thread, where the kernel runs without
the interpreter's lock, so the event loop stays free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import anyio
import numpy as np
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from mdms_pipeline.market import DAY, TIMEFRAMES, Candles, Instant, Timeframe
from mdms_pipeline.sandbox.exchange import SECOND, YEAR, Fault, Sandbox, UnknownMarket
from mdms_pipeline.sandbox.limits import Verdict
from mdms_pipeline.sandbox.model import Ints
from mdms_pipeline.sandbox.rows import KST_AHEAD, compact, tick_at, ticker_row, times
from mdms_pipeline.sandbox.socket import PATH, serving

MAX_CANDLES = 200  # per request; more is cut in silence, Upbit docs
WORKERS = 2  # threads that answer; more of them only wait for the interpreter's lock and hold the event loop up
UNITS = {str(n): TIMEFRAMES[name] for n, name in zip((1, 3, 5, 10, 15, 30, 60, 240), TIMEFRAMES, strict=False)}

NO_MARKET = (404, 404, "Code not found")
BAD_UNIT = (400, 400, "specified unit is not valid.")
MISSING = (400, 400, "Missing request parameter error. Check the required parameters!")
BAD_TYPE = (400, 400, "Type mismatch error. Check the parameters type!")
BAD_VALUE = (400, 400, "Invalid parameter. Check the given value!")
NO_ROUTE = (404, "not_found", "no Route matched with those values")

TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?")

Query = dict[str, str]
Answer = Callable[[Sandbox, Query, dict[str, Any]], str]


class Refused(Exception):
    """The request is wrong: (status, error name, message), as in the table of Upbit's errors."""

    def __init__(self, reason: tuple[int, int | str, str]) -> None:
        self.status, self.name, self.message = reason

    @property
    def body(self) -> str:
        """`{"error":{"name":404,"message":"Code not found"}}`"""
        return compact({"error": {"name": self.name, "message": self.message}})


# What was asked


def needed(query: Query, name: str) -> str:
    """A parameter that must be there."""
    if not query.get(name):
        raise Refused(MISSING)
    return query[name]


def count_of(query: Query) -> int:
    """How many candles: 1 unless told, 200 at most."""
    text = query.get("count", "1")
    if not re.fullmatch(r"[+-]?\d{1,9}", text):
        raise Refused(BAD_TYPE)
    if int(text) < 1:
        raise Refused(BAD_VALUE)
    return min(int(text), MAX_CANDLES)


def end_of(query: Query, now: float) -> Instant:
    """The exclusive end: the first whole second not before `to`; UTC where it says nothing else. Without `to`: just after now."""
    text = query.get("to")
    if not text:
        return int(now) + 1
    if not TIME.fullmatch(text):
        raise Refused(BAD_VALUE)
    try:
        at = datetime.fromisoformat(text)
        return math.ceil((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise Refused(BAD_VALUE) from None


def truth(query: Query, name: str) -> bool:
    """A parameter that is true or false; false unless told."""
    text = query.get(name, "false").lower()
    if text not in ("true", "false"):
        raise Refused(BAD_TYPE)
    return text == "true"


# What is answered


def heads(code: str, candles: Candles, last_ms: Ints) -> Iterator[str]:
    """The fields that all candles share, newest first, without the closing brace."""
    newest_first = slice(None, None, -1)
    columns = (getattr(candles, name)[newest_first].tolist() for name in ("open", "high", "low", "close", "value", "volume"))
    utc, kst = times(candles.opened_at[newest_first]), times(candles.opened_at[newest_first] + KST_AHEAD)
    for day, day_kst, ms, first, high, low, close, value, volume in zip(utc, kst, last_ms[newest_first].tolist(), *columns, strict=True):
        yield (
            f'{{"market":"{code}","candle_date_time_utc":"{day}","candle_date_time_kst":"{day_kst}",'
            f'"opening_price":{first!r},"high_price":{high!r},"low_price":{low!r},"trade_price":{close!r},"timestamp":{ms},'
            f'"candle_acc_trade_price":{value!r},"candle_acc_trade_volume":{volume!r}'
        )


def plain(sandbox: Sandbox, query: Query, frame: Timeframe, tail: Callable[[Instant], str]) -> str:
    """Candles with one more field each, made by `tail` from the opening instant."""
    code = needed(query, "market")
    candles, last_ms = sandbox.bars(code, frame, end_of(query, sandbox.clock()), count_of(query))
    opened = candles.opened_at[::-1].tolist()
    return "[" + ",".join(head + tail(at) for head, at in zip(heads(code, candles, last_ms), opened, strict=True)) + "]"


def minutes(sandbox: Sandbox, query: Query, place: dict[str, Any]) -> str:
    """GET /v1/candles/minutes/{unit}"""
    if place["unit"] not in UNITS:
        raise Refused(BAD_UNIT)
    tail = f',"unit":{place["unit"]}}}'
    return plain(sandbox, query, UNITS[place["unit"]], lambda _: tail)


def seconds(sandbox: Sandbox, query: Query, _: dict[str, Any]) -> str:
    """GET /v1/candles/seconds, of the last three months. At most four seconds of a minute saw a tick: the model's grain."""
    return plain(sandbox, query, SECOND, lambda _: "}")


def periods(frame: Timeframe) -> Answer:
    """GET /v1/candles/weeks, months, years"""

    def answer(sandbox: Sandbox, query: Query, _: dict[str, Any]) -> str:
        return plain(sandbox, query, frame, lambda at: f',"first_day_of_period":"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"}}')

    return answer


def days(sandbox: Sandbox, query: Query, _: dict[str, Any]) -> str:
    """GET /v1/candles/days: one candle more is read for the previous close; a market's first day has its own opening price."""
    code, count, unit = needed(query, "market"), count_of(query), query.get("converting_price_unit")
    if unit not in (None, "", "KRW"):
        raise Refused(BAD_VALUE)
    candles, last_ms = sandbox.bars(code, TIMEFRAMES["1d"], end_of(query, sandbox.clock()), count + 1)
    if not len(candles):
        return "[]"
    before = np.append(candles.open[:1], candles.close[:-1])
    skip = max(len(candles) - count, 0)
    candles, last_ms, before = candles[skip:], last_ms[skip:], before[skip:]
    changes = np.round(candles.close - before, 8)
    rates = np.round((candles.close - before) / before, 10)
    worth = in_krw(sandbox, code, candles) if unit else [None] * len(candles)
    tails = (
        f',"prev_closing_price":{close!r},"change_price":{change!r},"change_rate":{rate!r}'
        + ("}" if price is None else f',"converted_trade_price":{price!r}}}')
        for close, change, rate, price in zip(before[::-1].tolist(), changes[::-1].tolist(), rates[::-1].tolist(), worth[::-1], strict=True)
    )
    return "[" + ",".join(head + tail for head, tail in zip(heads(code, candles, last_ms), tails, strict=True)) + "]"


def in_krw(sandbox: Sandbox, code: str, candles: Candles) -> list[float | None]:
    """Closes in KRW: times the close of the quote currency's own KRW market on that day, None where it had none."""
    quote = code.split("-")[0]
    if quote == "KRW":
        return list(candles.close.tolist())
    span = int(candles.opened_at[-1] - candles.opened_at[0]) // DAY + 1
    krw = sandbox.candles(f"KRW-{quote}", TIMEFRAMES["1d"], int(candles.opened_at[-1]) + 1, span)
    rate = dict(zip(krw.opened_at.tolist(), krw.close.tolist(), strict=True))
    return [close * rate[at] if at in rate else None for at, close in zip(candles.opened_at.tolist(), candles.close.tolist(), strict=True)]


CAUTIONS = (
    "PRICE_FLUCTUATIONS", "TRADING_VOLUME_SOARING", "DEPOSIT_AMOUNT_SOARING", "GLOBAL_PRICE_DIFFERENCES", "CONCENTRATION_OF_SMALL_ACCOUNTS"
)  # fmt: skip


def market_all(sandbox: Sandbox, query: Query, _: dict[str, Any]) -> str:
    """GET /v1/market/all; cautions are never set."""
    details = truth(query, "is_details")
    rows: list[dict[str, Any]] = []
    for market in sandbox.markets():
        row: dict[str, Any] = {"market": market.code, "korean_name": market.korean_name, "english_name": market.english_name}
        if details:
            row["market_event"] = {"warning": market.warning, "caution": dict.fromkeys(CAUTIONS, False)}
        rows.append(row)
    return compact(rows)


def tickers(sandbox: Sandbox, codes: list[str]) -> str:
    """The tickers of these markets; one that has not traded yet has none. One unknown code fails all."""
    found = [sandbox.ticker(code) for code in codes]
    return compact([ticker_row(ticker) for ticker in found if ticker is not None])


def ticker(sandbox: Sandbox, query: Query, _: dict[str, Any]) -> str:
    """GET /v1/ticker"""
    codes = needed(query, "markets").split(",")
    for code in codes:
        sandbox.market(code)
    return tickers(sandbox, codes)


def ticker_all(sandbox: Sandbox, query: Query, _: dict[str, Any]) -> str:
    """GET /v1/ticker/all"""
    quotes = needed(query, "quote_currencies").split(",")
    return tickers(sandbox, [market.code for market in sandbox.markets() if market.quote in quotes])


def instruments(sandbox: Sandbox, query: Query, _: dict[str, Any]) -> str:
    """GET /v1/orderbook/instruments: the tick at the present price, spelled without an exponent."""
    rows = []
    for code in needed(query, "markets").split(","):
        market = sandbox.market(code)
        newest = sandbox.candles(code, TIMEFRAMES["1d"], int(sandbox.clock()) + 1, 1)
        tick = tick_at(market, newest.close[-1] if len(newest) else 1.0)
        rows.append({"market": code, "quote_currency": market.quote, "tick_size": decimal(tick), "supported_levels": ["0"]})
    return compact(rows)


def decimal(tick: float) -> str:
    """`1000`, `0.1`, `0.00000001`"""
    return f"{tick:.8f}".rstrip("0").rstrip(".")


# The way in

ROUTES: tuple[tuple[str, str, Answer], ...] = (
    ("/v1/market/all", "market", market_all),
    ("/v1/candles/minutes/{unit}", "candles", minutes),
    ("/v1/candles/seconds", "candles", seconds),
    ("/v1/candles/days", "candles", days),
    ("/v1/candles/weeks", "candles", periods(TIMEFRAMES["1w"])),
    ("/v1/candles/months", "candles", periods(TIMEFRAMES["1M"])),
    ("/v1/candles/years", "candles", periods(YEAR)),
    ("/v1/ticker", "ticker", ticker),
    ("/v1/ticker/all", "ticker", ticker_all),
    ("/v1/orderbook/instruments", "orderbook", instruments),
)


class Broken(Response):
    """Half a body, then the fault's error: what a cut connection looks like."""

    def __init__(self, fault: Fault, headers: dict[str, str]) -> None:
        super().__init__(fault.body, fault.status, headers, fault.content_type)
        self.error = fault.error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.body:
            headers = [(name, b"65536" if name == b"content-length" else value) for name, value in self.raw_headers]
            await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
            await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if self.error is not None:
            raise self.error("injected by the sandbox")


def stopped(verdict: Verdict) -> Response:
    """429 in plain text; 418 with the seconds that the block lasts, in its body only."""
    if verdict.status == 429:
        return Response("Too many API requests.", 429, media_type="text/plain")
    message = f"Too many API requests. Your IP is blocked for {math.ceil(verdict.wait)} seconds."
    return Response(Refused((418, "too_many_requests", message)).body, 418, media_type="application/json")


def answered(sandbox: Sandbox, answer: Answer, query: Query, place: dict[str, Any]) -> Response:
    """The true answer, or the error that the request deserves."""
    try:
        return Response(answer(sandbox, query, place), media_type="application/json")
    except UnknownMarket:
        refusal = Refused(NO_MARKET)
    except Refused as error:
        refusal = error
    return Response(refusal.body, refusal.status, media_type="application/json")


def served(sandbox: Sandbox, group: str, answer: Answer, workers: anyio.CapacityLimiter) -> Callable[[Request], Any]:
    """The endpoint of one route: limit, fault, answer, log."""

    async def serve(request: Request) -> Response:
        path, asked = request.url.path, request.query_params
        query = {name: ",".join(asked.getlist(name)) for name in asked}  # a parameter that is repeated is a list, as pyupbit writes it
        verdict = sandbox.limits.ask(group, sandbox.clock(), "origin" in request.headers)
        remaining = sandbox.header(group, verdict.left)
        headers = {} if remaining is None else {"Remaining-Req": remaining}
        fault = sandbox.faults(path, query) if sandbox.faults and verdict.status == 200 else None
        if fault and fault.delay:
            await anyio.sleep(fault.delay)
        if verdict.status != 200:
            response = stopped(verdict)
        elif fault and (fault.body or fault.error or fault.status != 200):
            headers = headers if fault.status < 500 else {}
            response = Broken(fault, headers) if fault.error else Response(fault.body, fault.status, None, fault.content_type)
        else:
            response = await to_thread.run_sync(answered, sandbox, answer, query, request.path_params, limiter=workers)
        response.headers.update(headers)
        sandbox.note(path, query, 0 if fault and fault.error else response.status_code)
        return response

    return serve


async def no_route(_: Request, __: Exception) -> Response:
    """An unknown path, or a method that is not GET: no Remaining-Req."""
    refusal = Refused(NO_ROUTE)
    return Response(refusal.body, refusal.status, media_type="application/json")


def create_app(sandbox: Sandbox) -> Starlette:
    """The sandbox as an ASGI app: for `httpx.ASGITransport(app=...)` or `uvicorn.run(...)`."""
    sandbox.warm()
    workers = anyio.CapacityLimiter(WORKERS)
    routes: list[BaseRoute] = [Route(path, served(sandbox, group, answer, workers), methods=["GET"]) for path, group, answer in ROUTES]
    routes.append(WebSocketRoute(PATH, serving(sandbox, workers, stopped)))
    app = Starlette(routes=routes, exception_handlers={404: no_route, 405: no_route})
    app.router.redirect_slashes = False
    return app
