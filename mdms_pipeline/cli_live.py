"""The commands `mdms live` and `mdms signal`. Exit codes: 0 all is well (`mdms live` was asked to end), 1 an error (said on stderr)."""

from __future__ import annotations

import asyncio
import json
import signal as operating_system
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import click

from mdms_pipeline.market import kst, utc
from mdms_pipeline.rules import answer_text
from mdms_pipeline.settings import Settings

LOOKS = 2  # times a second that the view is drawn
ENDS = (operating_system.SIGINT, operating_system.SIGTERM)


@contextmanager
def explained() -> Iterator[None]:
    """Errors that explain themselves are one message and exit code 1."""
    from mdms_pipeline.backtest.strategy import ParamError
    from mdms_pipeline.live.room import OverMemory
    from mdms_pipeline.live_watch import UnknownScreen

    try:
        yield
    except (ParamError, UnknownScreen, OverMemory) as error:
        raise click.ClickException(str(error)) from None


def _warehouse(settings: Settings) -> Any:
    from mdms_pipeline.store import Warehouse

    return Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb, no_trade=settings.no_trade)


@click.command()
@click.option(
    "--strategy", "strategies", multiple=True, metavar="NAME", help="Watch this strategy; may be repeated. Without: all there is."
)
@click.option("--screen", "screens", multiple=True, metavar="NAME", help="Watch this screen; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each signal, also on a terminal.")
def live(strategies: Sequence[str], screens: Sequence[str], as_json: bool) -> None:
    """Listen to the exchange, and tell the moment a strategy's or a screen's answer changes. Ctrl-C ends it."""
    from mdms_pipeline.live_watch import watches_of
    from mdms_pipeline.store.universe import universe

    settings = Settings.load()
    with explained():
        watches = watches_of(settings, strategies, screens)
    kept = [watch for watch in watches if watch.timeframe in settings.timeframes]
    for one in {(watch.source, watch.name): watch for watch in watches if watch not in kept}.values():
        click.echo(
            f"mdms: {one.source} {one.name} is left out: {one.timeframe} is not kept, MDMS_TIMEFRAMES={','.join(settings.timeframes)}",
            err=True,
        )
    if not kept:
        raise click.ClickException("nothing to watch: no strategy and no screen stands on a timeframe that is kept")
    warehouse = _warehouse(settings)
    with warehouse.read() as connection:
        symbols = universe(connection)
    if not symbols:
        raise click.ClickException("no market is collected yet: run `mdms run` first")
    seen = sys.stdout.isatty() and not as_json
    with explained():
        asyncio.run(_live(settings, warehouse, kept, symbols, _nobody if seen else _teller(as_json), seen))


async def _live(
    settings: Settings, warehouse: Any, watches: Sequence[Any], symbols: Sequence[str], tell: Callable[[Any], None], seen: bool
) -> None:
    """Until a signal of the operating system asks for the end."""
    from mdms_pipeline.collect import wire
    from mdms_pipeline.collect.client import connect
    from mdms_pipeline.collect.socket import listen
    from mdms_pipeline.live.deliver import Delivery
    from mdms_pipeline.live.run import Live
    from mdms_pipeline.live.serve import serving
    from mdms_pipeline.live.tidy import tidied

    delivery = Delivery.open(settings, warehouse)
    try:
        async with connect(settings.exchange_url, settings.clock) as exchange:
            errors = (wire.ExchangeError,)
            process = Live(watches, warehouse, symbols, exchange, settings.clock, delivery, errors, (wire.NotFound,), tell)
            said = ", ".join(f"{len(markets)} {frame}" for frame, markets in process.wanted.of.items())
            click.echo(f"mdms: {len(watches)} rules on {said} candles; Ctrl-C ends it", err=True)
            with _shown(process, warehouse, settings) if seen else nullcontext(_notice) as notice:
                process.notice = notice
                heard: Any = listen(settings.exchange_url, process.wanted, settings.clock, notice=notice)
                async with aclosing(heard) as events, serving(settings.home, process, notice), tidied(lambda: process.idle):
                    await _until_asked(asyncio.create_task(process.run(events)))
            for what, why in process.health.dropped.items():
                click.echo(f"mdms: {what} was not watched: {why}", err=True)
    finally:
        delivery.close()


async def _until_asked(work: asyncio.Task[None]) -> None:
    """Wait for `work`; SIGINT and SIGTERM end it, and that is no error. A second one does not wait until it has ended."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in ENDS:
        loop.add_signal_handler(number, asked.set)
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for number in ENDS:
        loop.remove_signal_handler(number)
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return
    work.result()


def _notice(said: str) -> None:
    click.echo(f"mdms: {said}", err=True)


def _nobody(signals: Sequence[Any]) -> None:
    """The view shows signals by itself."""


@contextmanager
def _shown(process: Any, warehouse: Any, settings: Settings) -> Iterator[Callable[[str], None]]:
    """The view, drawn anew LOOK times a second on a screen of its own; what is to be noticed is shown in it."""
    from rich.live import Live as Screen

    from mdms_pipeline.live_view import View, drawn
    from mdms_pipeline.show import OUT
    from mdms_pipeline.store.universe import known_symbols

    with warehouse.read() as connection:
        view = View(process, {symbol: korean for symbol, (korean, _, _) in known_symbols(connection).items()})

    def look() -> Any:
        return drawn(view.picture(settings.clock(), OUT.size.height), OUT.size.width, OUT.size.height)

    async def draw() -> None:
        while True:
            await asyncio.sleep(1 / LOOKS)
            screen.update(look(), refresh=True)

    with Screen(look(), console=OUT, screen=True, auto_refresh=False, redirect_stderr=False) as screen:
        drawing = asyncio.get_running_loop().create_task(draw())
        try:
            yield view.notices.append
        finally:
            drawing.cancel()
    _said_at_the_end(process)


def _said_at_the_end(process: Any) -> None:
    """What remains on the terminal once the view is gone."""
    health = process.health
    click.echo(f"{health.signals} signals, {health.provisional} provisional ones, from {health.messages} messages")
    for one in process.delivery.standings():
        if one.waiting or one.aside or one.dropped:
            click.echo(f"{one.name}: {one.waiting} wait in the journal, {len(one.aside)} refused, {one.dropped} lost", err=True)


def _teller(as_json: bool) -> Callable[[Sequence[Any]], None]:
    """Prints signals as lines; whoever reads them has gone: the end."""

    def tell(signals: Sequence[Any]) -> None:
        if sys.stdout is None:  # what was under way when the reader went
            return
        try:
            for signal in signals:
                print(_json_line(signal) if as_json else plain_line(signal))
            sys.stdout.flush()
        except BrokenPipeError:
            sys.stdout = None  # nothing is printed any more
            operating_system.raise_signal(operating_system.SIGTERM)

    return tell


def _json_line(signal: Any) -> str:
    from mdms_pipeline.live.journal import spoken

    return json.dumps(spoken(signal), ensure_ascii=False)


def plain_line(signal: Any) -> str:
    """One signal for people: when, where, what, why."""
    values = _values(signal)
    marks = ("provisional, " if signal.provisional else "") + (f"revision {signal.revision}, " if signal.revision else "")
    return (
        f"{utc(signal.opened_at)} = {kst(signal.opened_at)}  {signal.symbol} {signal.timeframe}  {signal.name} {signal.rule}: "
        f"{answer_text(signal.before)} -> {answer_text(signal.answer)}  ({marks}{values})"
    )


def _values(said: Any) -> str:
    """What decided."""
    return ", ".join(f"{name} = {answer_text(value)}" for name, value in said.values.items())


@click.command(name="signal")
@click.argument("symbol")
@click.argument("strategy")
@click.option("--stored", is_flag=True, help="Of the stored candles alone; the exchange is not asked for what closed since.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def signal_now(symbol: str, strategy: str, stored: bool, as_json: bool) -> None:
    """What STRATEGY says of SYMBOL now: at the last closed bar, and at the one that forms. By a running `mdms live`, or without."""
    from mdms_pipeline.answers import signal
    from mdms_pipeline.live.desk import NothingStored

    settings = Settings.load()
    with explained():
        try:
            answer = signal(symbol, strategy, settings, ask=not stored)
        except (NothingStored, ValueError) as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(asdict(answer), ensure_ascii=False, indent=2))
        return
    click.echo(f"{answer.symbol} {answer.name}, {answer.timeframe} bar of {utc(answer.opened_at)} = {kst(answer.opened_at)}")
    for mark, found in (("", answer.said), ("forming, provisional: ", answer.forming)):
        for said in found:
            click.echo(f"  {mark}{said.rule}: {answer_text(said.answer)} (before: {answer_text(said.before)})  {_values(said)}")
    if answer.behind:
        click.echo(f"mdms: {answer.behind} {answer.timeframe} slots have closed since; without --stored the exchange is asked", err=True)
    click.echo(f"by {answer.way}, {1_000 * answer.seconds:.1f} ms")


def show_forming(settings: Settings, warehouse: Any, screens: Sequence[Any], as_json: bool) -> None:
    """Screens over the bars that form; everything in it is provisional."""
    from mdms_pipeline.live_screen import ranked
    from mdms_pipeline.show import show_rankings
    from mdms_pipeline.store.universe import known_symbols

    with warehouse.read() as connection:
        names = known_symbols(connection)
    found = {screen.name: (screen, looked) for screen, looked in _looked(settings, warehouse, screens)}
    rankings = {name: ranked(screen, looked, names) for name, (screen, looked) in found.items()}
    if as_json:
        click.echo(json.dumps(rankings, ensure_ascii=False, indent=2))
        return
    show_rankings({name: {**ranking, "title": f"{ranking['title']}, provisional"} for name, ranking in rankings.items()})
    for name, (screen, looked) in found.items():
        guessed = "".join(f", {column} not sure of {count}" for column, count in looked.guessed.items())
        click.echo(f"mdms: {name}: the {screen.timeframe} bar of {looked.formed} markets forms{guessed}; by {looked.way}", err=True)
        if looked.behind:
            click.echo(
                f"mdms: {name}: the stored candles of {looked.behind} markets end before that bar: `mdms run` collects them", err=True
            )


def _looked(settings: Settings, warehouse: Any, screens: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each screen with its provisional result: by a running `mdms live`; for all that none can answer, by one request to the exchange."""
    from mdms_pipeline.live.ask import asked_bars
    from mdms_pipeline.live_screen import look_heard, look_live, wanted

    with warehouse.read() as connection:
        asked = {screen.name: wanted(connection, screen) for screen in screens}
    heard = {name: asked_bars(settings.home, *question) for name, question in asked.items()}
    days = asyncio.run(_today(settings)) if None in heard.values() else {}
    now = settings.clock()
    with warehouse.read() as connection:
        for screen in screens:
            bars = heard[screen.name]
            yield screen, look_live(connection, screen, days, now) if bars is None else look_heard(connection, screen, bars)


async def _today(settings: Settings) -> dict[str, Any]:
    from mdms_pipeline.collect.client import connect

    async with connect(settings.exchange_url, settings.clock) as exchange:
        return {day.symbol: day for day in await exchange.today()}


commands: list[click.Command] = [live, signal_now]
