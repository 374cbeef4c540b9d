"""The `mdms` command. Exit codes: 0 all is well, 1 an error (said on stderr), 2 wrong usage, 3 done, but some markets failed."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mdms_pipeline import show
from mdms_pipeline.cli_backtest import commands as backtest_commands
from mdms_pipeline.cli_live import commands as live_commands
from mdms_pipeline.cli_live import show_forming
from mdms_pipeline.cli_service import commands as service_commands
from mdms_pipeline.cli_truth import TimeLeft, date_of, stepping
from mdms_pipeline.cli_truth import commands as truth_commands
from mdms_pipeline.market import SETTLE, TIMEFRAMES, iso
from mdms_pipeline.settings import SETTINGS, SettingError, Settings
from mdms_pipeline.show import ERR, MODES, OUT

PARTLY = 3  # exit code: done, but some markets failed
SETTINGS_HELP = "\n\n\b\nSettings, from the environment:\n" + "\n".join(
    f"  {name} = {default or '(none)'}: {what}" for name, (default, what) in SETTINGS.items()
)


class Commands(click.Group):
    """Errors of ours are one message on stderr and exit code 1; a traceback is for what nobody foresaw."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            ERR.print("stopped; what was stored stays, the next run goes on from there")
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if not _expected(error):
                raise
            click.echo(f"mdms: {error}", err=True)
            raise click.exceptions.Exit(1) from None


def _expected(error: BaseException) -> bool:
    """Whether this error explains itself to a user."""
    from mdms_pipeline.collect.capacity import OverCapacity
    from mdms_pipeline.collect.universe import UnknownSymbol
    from mdms_pipeline.collect.wire import ExchangeError
    from mdms_pipeline.rules import RuleError
    from mdms_pipeline.store import StoreError
    from mdms_pipeline.vocabulary import ExtensionError

    return isinstance(error, (SettingError, StoreError, ExchangeError, UnknownSymbol, OverCapacity, RuleError, ExtensionError, UserError))


class UserError(Exception):
    """What was asked for cannot be; the message says what can."""


@click.group(cls=Commands, epilog=SETTINGS_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mdms-pipeline")
def main() -> None:
    """Upbit market data, collected once, calculated once, used everywhere."""
    warnings.filterwarnings("ignore", module="dagster")


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@contextmanager
def watched(quiet: bool) -> Iterator[Callable[[str, int], Any]]:
    """A progress bar per step on stderr; nothing where stderr is no terminal, or `quiet`."""
    name, times = TextColumn("{task.description:<16}"), (TimeElapsedColumn(), TimeLeft())
    with Progress(
        SpinnerColumn(), name, BarColumn(), MofNCompleteColumn(), *times, console=ERR, disable=quiet or not ERR.is_terminal, transient=True
    ) as bars:
        yield stepping(bars)


def _warehouse(settings: Settings) -> Any:
    from mdms_pipeline.store import Warehouse

    return Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb, no_trade=settings.no_trade)


def _check_capacity(settings: Settings, warehouse: Any) -> None:
    """Refuse what the exchange would not allow for long."""
    from mdms_pipeline.collect.capacity import check_capacity
    from mdms_pipeline.store.universe import listed

    with warehouse.read() as connection:
        check_capacity(settings, listed(connection))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


# ---- run


@main.command()
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and do nothing.")
@as_json
def run(only_plan: bool, as_json: bool) -> None:
    """Update the universe, then collect, calculate and screen what is due, in one Dagster run."""
    settings = Settings.load()
    warehouse = _warehouse(settings)
    if only_plan:
        from mdms_pipeline.plan import plan_run

        _plan(plan_run(settings, warehouse), as_json)
        return
    import logging

    _check_capacity(settings, warehouse)
    from mdms_pipeline.defs.resources import Mdms
    from mdms_pipeline.defs.run import refresh, use_home
    from mdms_pipeline.screen.look import screens_of

    logging.getLogger("dagster").setLevel(logging.ERROR)
    with use_home(settings) as instance, watched(as_json) as progress:
        done = refresh(instance, warehouse, Mdms(settings, progress=progress))
    loaded = screens_of(settings)
    report = _report(warehouse, done, loaded.screens)
    if as_json:
        _print_json(report)
    else:
        show.show_run(settings, report)
    for error in loaded.errors:
        click.echo(f"mdms: {error}", err=True)
    if done.error:
        raise UserError(done.error)
    sys.exit(1 if loaded.errors else PARTLY if report["failed"] else 0)


def _report(warehouse: Any, done: Any, screens: Mapping[str, Any]) -> dict[str, Any]:
    """All that a run has to say, as JSON holds it."""
    from mdms_pipeline.screen.look import ranking
    from mdms_pipeline.store.candles import FAILED, QUARANTINED, standings
    from mdms_pipeline.store.journal import work_of

    with warehouse.read() as connection:
        work = [entry for run_id in done.run_ids for entry in work_of(connection, run_id)]
        bad = [standing for standing in standings(connection).values() if standing.state in (FAILED, QUARANTINED)]
        rankings = {name: (screen, ranking(connection, screen)) for name, screen in screens.items()}
    return {
        "due": dict(done.due),
        "runs": list(done.run_ids),
        "succeeded": done.succeeded,
        "seconds": round(done.seconds, 2),
        "steps": _steps(work),
        "failed": {f"{standing.symbol} {standing.timeframe}": f"{standing.state}: {standing.reason}" for standing in bad},
        "rankings": {name: _ranking_json(screen, found) for name, (screen, found) in rankings.items()},
    }


def _steps(work: Sequence[Any]) -> list[dict[str, Any]]:
    """Totals by step over all timeframes, in the order in which they ran. The candles of all timeframes are collected together."""
    totals: dict[str, dict[str, Any]] = {}
    for entry in work:
        total = totals.setdefault(entry.step, {"step": entry.step, "rows": 0, "requests": 0, "seconds": 0.0, **dict.fromkeys(MODES, 0)})
        together = entry.step == "candles"
        total["seconds"] = round(max(total["seconds"], entry.seconds) if together else total["seconds"] + entry.seconds, 3)
        total["requests"] = max(total["requests"], entry.requests)
        total["rows"] += entry.rows
        for mode in MODES:
            total[mode] += getattr(entry, mode)
    return list(totals.values())


def _ranking_json(screen: Any, found: Any) -> dict[str, Any]:
    said = {"title": screen.title, "timeframe": screen.timeframe.name, "rank": str(screen.rank)}
    if found is None:
        return {**said, "at": None, "outcomes": {}, "rows": []}
    rows = [
        {"place": row.place, "symbol": row.symbol, "korean_name": row.korean_name, "english_name": row.english_name, "age": row.age,
         "unstable": row.unstable, "rank": row.rank_value, "turnover": row.turnover, "values": dict(row.values)}
        for row in found.rows
    ]  # fmt: skip
    outcomes = {str(outcome): count for outcome, count in found.outcomes.items()}
    return {**said, "at": iso(found.at), "outcomes": outcomes, "rows": rows}


# ---- the layers one by one, without Dagster


symbol_option = click.option("--symbol", "symbols", multiple=True, help="Only this market; may be repeated.")
timeframe_option = click.option("--timeframe", "timeframes", multiple=True, help="Only this timeframe; may be repeated.")


def _chosen(settings: Settings, warehouse: Any, symbols: Sequence[str], timeframes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The markets and timeframes meant, else UserError naming what is not collected."""
    from mdms_pipeline.store.universe import universe

    with warehouse.read() as connection:
        collected = universe(connection)
    for symbol in symbols:
        if symbol not in collected:
            raise UserError(
                f"symbol {symbol!r} is not collected{_hint(symbol, collected)}; MDMS_SYMBOLS={settings.universe} says which are"
            )
    return list(symbols) or collected, _kept_timeframes(settings, timeframes)


def _stored_markets(warehouse: Any, symbols: Sequence[str]) -> list[str]:
    """The markets meant, out of all that are collected or were: those that left the universe too. Else UserError."""
    from mdms_pipeline.store.candles import standings
    from mdms_pipeline.store.universe import universe

    with warehouse.read() as connection:
        known = sorted({*universe(connection), *(symbol for symbol, _ in standings(connection))})
    for symbol in symbols:
        if symbol not in known:
            raise UserError(f"symbol {symbol!r} was never collected{_hint(symbol, known)}; `mdms status` says what is stored")
    return list(symbols) or known


def _kept_timeframes(settings: Settings, timeframes: Sequence[str]) -> list[str]:
    """The timeframes meant, else UserError naming what is not kept."""
    for name in timeframes:
        if name not in TIMEFRAMES:
            raise UserError(f"timeframe {name!r} is not known: use one of {', '.join(TIMEFRAMES)}")
        if name not in settings.timeframes:
            raise UserError(f"timeframe {name!r} is not kept: MDMS_TIMEFRAMES={','.join(settings.timeframes)} says which are")
    return list(timeframes) or list(settings.timeframes)


def _hint(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else ""


@main.command()
@symbol_option
@timeframe_option
@click.option("--since", callback=date_of, help="Also everything back to this date, such as 2017-09-25 (UTC), or to the listing.")
@as_json
def collect(symbols: Sequence[str], timeframes: Sequence[str], since: int | None, as_json: bool) -> None:
    """Layer 1 alone: update the universe, and collect what is missing up to the newest closed candle."""
    from mdms_pipeline.collect.client import connect
    from mdms_pipeline.collect.fill import fill
    from mdms_pipeline.collect.universe import update_universe

    settings = Settings.load()
    warehouse = _warehouse(settings)
    _check_capacity(settings, warehouse)

    async def work() -> Any:
        async with connect(settings.exchange_url, settings.clock) as exchange:
            await update_universe(exchange, warehouse, settings)
            _check_capacity(settings, warehouse)
            markets, frames = _chosen(settings, warehouse, symbols, timeframes)
            partitions = [(symbol, name) for name in sorted(frames, key=list(TIMEFRAMES).index) for symbol in sorted(markets)]
            with watched(as_json) as progress:
                return await fill(exchange, warehouse, partitions, settings.history, progress=progress, since=since)

    filled = asyncio.run(work())
    failed = {" ".join(partition): filled.reasons[partition] for partition in filled.failed()}
    states = dict(Counter(filled.states.values()).most_common())
    candles = sum(filled.candles.values())
    if as_json:
        _print_json(
            {
                "candles": candles,
                "requests": filled.requests,
                "quiet": filled.quiet,
                "seconds": round(filled.seconds, 2),
                "states": states,
                "failed": failed,
            }
        )
    else:
        ended = ", ".join(f"{count} {state}" for state, count in states.items())
        quiet = f", {filled.quiet} without a trade by one ticker" if filled.quiet else ""
        OUT.print(f"{candles:,} candles in {filled.requests} requests, {filled.seconds:.1f} s{quiet}; {ended}")
        show.show_failed(failed)
    if failed and len(failed) == len(filled.states):
        raise UserError(f"no market could be collected: {next(iter(failed.values()))}")
    sys.exit(PARTLY if failed else 0)


@main.command()
@symbol_option
@timeframe_option
@as_json
def calculate(symbols: Sequence[str], timeframes: Sequence[str], as_json: bool) -> None:
    """Layer 2 alone: bring every kept indicator up to the stored candles, also of markets that have left the universe."""
    from mdms_pipeline.calculate.advance import advance
    from mdms_pipeline.calculate.catalog import KINDS
    from mdms_pipeline.kept import kept_indicators

    settings = Settings.load()
    warehouse = _warehouse(settings)
    kept = kept_indicators(settings)
    markets, frames = _stored_markets(warehouse, symbols), _kept_timeframes(settings, timeframes)
    done = []
    with watched(as_json) as progress:
        for kind in KINDS.values():
            mine = [indicator for indicator in kept if indicator.kind is kind]
            with progress(kind.name, len(markets) * len(frames)) as advanced:
                done += advance(warehouse, mine, dict.fromkeys(frames, markets), progress=advanced) if mine else []
    rows = [
        {"indicator": step.kind, "timeframe": step.timeframe,
         **{mode: step.count(mode) for mode in ("hit", "incremental", "from start", "skipped")},
         "rows": sum(step.rows.values()), "seconds": round(step.seconds, 3), "why": step.why}
        for step in done
    ]  # fmt: skip
    if as_json:
        _print_json(rows)
    else:
        show.show_calculated(rows)


def _screen_named(settings: Settings, name: str) -> Any:
    from mdms_pipeline.screen.look import screens_of

    loaded = screens_of(settings)
    if name in loaded.screens:
        return loaded.screens[name]
    broken = [error for error in loaded.errors if error.file.stem == name]
    if broken:
        raise UserError("\n".join(map(str, broken)))
    raise UserError(f"screen {name!r} is not known{_hint(name, list(loaded.screens))}; there are {', '.join(loaded.screens)}")


@main.command()
@click.argument("name", required=False)
@click.option(
    "--live",
    "forming",
    is_flag=True,
    help="Over the bars that form, by a running `mdms live` or one request to the exchange: provisional, not kept.",
)
@as_json
def screen(name: str | None, forming: bool, as_json: bool) -> None:
    """Layer 3 alone: screen the stored candles and indicators, by one screen or all, and show the rankings."""
    from mdms_pipeline.screen.look import instant_of, ranking, screen_all, screens_of

    settings = Settings.load()
    loaded = screens_of(settings)
    chosen = [_screen_named(settings, name)] if name else list(loaded.screens.values())
    warehouse = _warehouse(settings)
    if forming:
        show_forming(settings, warehouse, chosen, as_json)
        return
    for frame in dict.fromkeys(screen.timeframe.name for screen in chosen):
        screen_all(warehouse, [screen for screen in chosen if screen.timeframe.name == frame], frame)
    with warehouse.read() as connection:
        rankings = {screen.name: _ranking_json(screen, ranking(connection, screen)) for screen in chosen}
    if as_json:
        _print_json(rankings)
    else:
        show.show_rankings(rankings)
    for screen in chosen:
        at, newest = rankings[screen.name]["at"], iso(instant_of(screen, settings.clock()))
        if at is not None and at != newest:
            click.echo(f"mdms: {screen.name} stands on the candle of {at}; that of {newest} has closed since: run `mdms run`", err=True)
        if waiting := _behind(warehouse, screen):
            click.echo(f"mdms: {screen.name} reads indicators that are behind the candles ({waiting}): run `mdms calculate`", err=True)
    for error in loaded.errors if name is None else ():
        click.echo(f"mdms: {error}", err=True)
    sys.exit(1 if name is None and loaded.errors else 0)


def _behind(warehouse: Any, screen: Any) -> str:
    """The indicators that a screen reads and that are to be calculated first, in words; empty where there are none."""
    from mdms_pipeline.calculate.advance import outstanding
    from mdms_pipeline.store.universe import universe
    from mdms_pipeline.vocabulary import needed

    with warehouse.read() as connection:
        waiting = outstanding(connection, needed(screen.expressions), screen.timeframe.name, universe(connection))
    said = [f"{what}: {count} markets" for what, count in waiting.items()]
    return ", ".join([*said[:1], *([f"{len(said) - 1} more"] if said[1:] else [])])


@main.command()
@click.argument("symbol")
@click.argument("name", metavar="SCREEN")
@as_json
def why(symbol: str, name: str, as_json: bool) -> None:
    """Why a market passes a screen or does not: every part of every rule with its value."""
    from mdms_pipeline.screen.judge import judge
    from mdms_pipeline.screen.judge import why as explained
    from mdms_pipeline.screen.look import candidates, instant_of
    from mdms_pipeline.store.candles import last_checked
    from mdms_pipeline.vocabulary import indicator_of

    settings = Settings.load()
    screen, warehouse = _screen_named(settings, name), _warehouse(settings)
    _chosen(settings, warehouse, [symbol], [])
    with warehouse.read() as connection:
        now = last_checked(connection, screen.timeframe.name)
        if now is None:
            raise UserError(f"{screen.timeframe} candles were never collected: run `mdms run`")
        at = instant_of(screen, now)
        found = candidates(connection, screen, at, [symbol])
    stable_after = {call: indicator_of(call).stable_after for call in screen.calls}
    row = next(row for row in judge(screen, at, found, stable_after).rows if row.symbol == symbol)
    parts = explained(screen, found[0])
    report = {
        "symbol": symbol, "screen": name, "timeframe": screen.timeframe.name, "at": iso(at),
        "outcome": str(row.outcome), "reason": row.reason, "age": row.age, "unstable": list(row.unstable),
        "parts": [part.as_dict() for part in parts],
    }  # fmt: skip
    if as_json:
        _print_json(report)
    else:
        clauses = len(screen.where)
        show.show_why(report, list(map(str, parts[:clauses])), list(map(str, parts[clauses:])))


# ---- what there is, and what would be done


@main.command()
@click.argument("indicators", nargs=-1)
@as_json
def plan(indicators: Sequence[str], as_json: bool) -> None:
    """What a run would do, for these indicators and all that they read: mdms plan 'rsi(14)' macd."""
    from mdms_pipeline.plan import plan_run
    from mdms_pipeline.vocabulary import load_extensions, parse_indicator

    settings = Settings.load()
    load_extensions(settings.extensions)
    try:
        wanted = [parse_indicator(text) for text in indicators]
    except ValueError as error:
        raise UserError(str(error)) from None
    _plan(plan_run(settings, _warehouse(settings), wanted), as_json)


def _plan(plan: Any, as_json: bool) -> None:
    if as_json:
        _print_json(asdict(plan))
    else:
        show.show_plan(plan)


@main.command()
@as_json
def status(as_json: bool) -> None:
    """How fresh every market and timeframe is, and what is wrong with those that are not."""
    from mdms_pipeline.live.deliver import held_up as receivers_held_up
    from mdms_pipeline.store.alerts import alerts
    from mdms_pipeline.store.candles import standings
    from mdms_pipeline.store.journal import newest_event
    from mdms_pipeline.store.subscribe import cursors
    from mdms_pipeline.store.universe import universe

    settings = Settings.load()
    with _warehouse(settings).read() as connection:
        known, collected = standings(connection), universe(connection)
        indicators = dict(connection.execute("SELECT timeframe, count(DISTINCT indicator) FROM memory GROUP BY timeframe").fetchall())
        last = newest_event(connection)
        wrong, held_up = alerts(connection, only_open=True), [cursor for cursor in cursors(connection) if cursor.error]
    now = int(settings.clock()) - SETTLE
    report = {
        "warehouse": str(settings.warehouse),
        "bytes": settings.warehouse.stat().st_size,
        "exchange": settings.exchange_url,
        "collected": len(collected),
        "timeframes": _timeframes(known.values(), indicators, now),
        "not_fresh": _not_fresh(known.values(), now),
        "last_event": last,
        "alerts": [f"{alert.kind} since {iso(alert.raised_at)}: {alert.message}" for alert in wrong],
        "held_up": {
            **{cursor.subscriber: f"{cursor.attempts} failures: {cursor.error}" for cursor in held_up},
            **receivers_held_up(settings.signals),
        },
    }
    if as_json:
        _print_json(report)
    else:
        show.show_status(report)


def _timeframes(known: Collection[Any], indicators: Mapping[str, int], now: int) -> list[dict[str, Any]]:
    """Totals by timeframe, finest first."""
    frames = []
    for name in TIMEFRAMES:
        mine = [standing for standing in known if standing.timeframe == name]
        newest = max((standing.newest for standing in mine if standing.newest is not None), default=None)
        states = dict(Counter(standing.at(now) for standing in mine).most_common())
        candles = sum(standing.candles for standing in mine)
        if mine:
            frames.append(
                {
                    "timeframe": name,
                    "states": states,
                    "candles": candles,
                    "indicators": indicators.get(name, 0),
                    "newest": newest and iso(newest),
                }
            )
    return frames


def _not_fresh(known: Collection[Any], now: int) -> dict[str, str]:
    """Partition -> state and reason, of those that are collected and not up to date."""
    odd = {f"{standing.symbol} {standing.timeframe}": (standing.at(now), standing.reason) for standing in known}
    return {
        name: state + (f": {reason}" if reason else "")
        for name, (state, reason) in odd.items()
        if state not in ("fresh", "not in universe")
    }


# ---- processes that stay


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8017, show_default=True, help="Port on the loopback address.")
@click.option("--limits/--no-limits", default=True, show_default=True, help="Keep Upbit's rate limits: 429, then 418.")
@click.option("--seed", type=int, default=7, show_default=True, help="Another seed is another world.")
def sandbox(port: int, limits: bool, seed: int) -> None:
    """Serve the sandbox exchange, which speaks Upbit's public REST and WebSocket, on http://127.0.0.1:PORT."""
    import uvicorn

    from mdms_pipeline.sandbox import Sandbox, create_app

    click.echo(f"sandbox exchange on http://127.0.0.1:{port}; use it with MDMS_EXCHANGE_URL=http://127.0.0.1:{port}", err=True)
    uvicorn.run(create_app(Sandbox(seed=seed, limits=limits)), host="127.0.0.1", port=port, log_level="warning")


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of Dagster's UI.")
def dev(port: int) -> None:
    """Dagster's UI and daemon over this project, schedules running. `make dev` calls it."""
    from mdms_pipeline.collect.wire import ExchangeError
    from mdms_pipeline.defs.resources import Mdms
    from mdms_pipeline.defs.run import refresh_universe, use_home

    settings = Settings.load()
    warehouse = _warehouse(settings)
    _check_capacity(settings, warehouse)
    with use_home(settings) as instance:
        try:
            asyncio.run(refresh_universe(instance, warehouse, Mdms(settings)))
        except ExchangeError as error:
            click.echo(f"mdms: the exchange does not answer, so the universe stays as it was: {error}", err=True)
    root = Path(__file__).resolve().parent.parent
    os.environ["MDMS_HOME"] = str(settings.home)  # Dagster's processes work in another folder than the user does
    if settings.extensions:
        os.environ["MDMS_EXTENSIONS"] = str(settings.extensions)
    os.chdir(root)
    click.echo(f"Dagster's UI will be on http://127.0.0.1:{port} in a moment; Ctrl-C ends it", err=True)
    quiet = ("-W", "ignore:Function `dev_command`")  # `dagster dev` says that there is `dg dev`, which has no --workspace
    os.execv(
        sys.executable, [sys.executable, *quiet, "-m", "dagster", "dev", "--workspace", str(root / "workspace.yaml"), "--port", str(port)]
    )


for command in (*service_commands, *truth_commands, *backtest_commands, *live_commands):
    main.add_command(command)


if __name__ == "__main__":
    main()
