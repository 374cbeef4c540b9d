"""Commands that say how true the store is: `mdms coverage`, `mdms verify`, `mdms reconcile`. Registered by `cli.py`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from mdms_pipeline.market import TIMEFRAMES, instant, iso
from mdms_pipeline.progress import Progress, unwatched
from mdms_pipeline.settings import Settings
from mdms_pipeline.show import ERR, OUT, show_list, table

DIFFERS = 3  # exit code: done, and something differs
COUNTS = ("expected", "traded", "no_trade", "maintenance", "unknown", "forming")

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
symbol_option = click.option("--symbol", "symbols", multiple=True, help="Only this market; may be repeated.")
timeframe_option = click.option("--timeframe", "timeframes", multiple=True, help="Only this timeframe; may be repeated.")


def date_of(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """An instant from a date or time: the callback of an option."""
    try:
        return None if text is None else instant(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


class TimeLeft(ProgressColumn):
    """What is left, at the rate of what was done one by one; what fell away at once (a market that is younger) is no speed."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """`0:12:07 left at 9.8/s`"""
        singles, elapsed = task.fields.get("singles", 0), task.elapsed or 0.0
        if not singles or elapsed < 1 or task.remaining is None:
            return Text("-:--:-- left", style="progress.remaining")
        rate = singles / elapsed
        return Text(f"{timedelta(seconds=round(task.remaining / rate))} left at {rate:.1f}/s", style="progress.remaining")


def _warehouse(settings: Settings) -> Any:
    from mdms_pipeline.store import Warehouse

    return Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb, no_trade=settings.no_trade)


def _standings(warehouse: Any, symbols: Sequence[str], timeframes: Sequence[str]) -> list[Any]:
    """The partitions meant, by timeframe and symbol; a usage error names what is not stored."""
    from mdms_pipeline.store.candles import standings

    with warehouse.read() as connection:
        known = list(standings(connection).values())
    for what, asked, held in (
        ("symbol", symbols, {row.symbol for row in known}),
        ("timeframe", timeframes, {row.timeframe for row in known}),
    ):
        for name in asked:
            if name not in held:
                raise click.UsageError(f"{what} {name!r} is not stored: stored are {', '.join(sorted(held)) or 'none yet: run `mdms run`'}")
    chosen = [row for row in known if (not symbols or row.symbol in symbols) and (not timeframes or row.timeframe in timeframes)]
    return sorted(chosen, key=lambda row: (list(TIMEFRAMES).index(row.timeframe), row.symbol))


# ---- coverage


@click.command()
@symbol_option
@timeframe_option
@click.option("--since", callback=date_of, help="Only slots from this date on (UTC); else from the earliest coverage.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Also draw a heat map into this PNG file.")
@as_json
def coverage(symbols: Sequence[str], timeframes: Sequence[str], since: int | None, picture: Path | None, as_json: bool) -> None:
    """What every slot is: traded, no trade, in a maintenance hole, unknown (never asked for), or forming."""
    from mdms_pipeline.store.slots import survey

    settings = Settings.load()
    warehouse = _warehouse(settings)
    rows = _standings(warehouse, symbols, timeframes)
    surveys = []
    for name in dict.fromkeys(row.timeframe for row in rows):
        with warehouse.read() as connection:
            surveys.append(survey(connection, name, rows, settings.clock(), since))
    found = [one for one in surveys if one is not None]
    if picture is not None and found:
        from mdms_pipeline.heatmap import picture as drawn

        picture.write_bytes(drawn(found))
    report = {
        "timeframes": [_totals(one) for one in found],
        "partitions": [row for one in found for row in one.rows()],
        "picture": str(picture) if picture is not None and found else None,
    }
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        show_coverage(report)


def _totals(survey: Any) -> dict[str, Any]:
    rows = survey.rows()
    return {
        "timeframe": survey.timeframe,
        "markets": len(rows),
        **{name: sum(row[name] for row in rows) for name in COUNTS},
        "holes": [{"from": iso(start), "to": iso(end)} for start, end in survey.holes],
    }


def show_coverage(report: dict[str, Any]) -> None:
    """Totals by timeframe, the holes of all markets, and the partitions in which anything is unknown."""
    if not report["timeframes"]:
        OUT.print("Nothing is covered yet: run `mdms run`")
        return
    columns = ["timeframe", "markets", *COUNTS]
    OUT.print(table("Slots", columns, [[_cell(row[name]) for name in columns] for row in report["timeframes"]]))
    for frame in report["timeframes"]:
        show_list(
            [f"{frame['timeframe']} maintenance in every market: {hole['from']} to {hole['to']}" for hole in frame["holes"]],
            "mdms coverage --json",
        )
    odd = sorted((row for row in report["partitions"] if row["unknown"]), key=lambda row: -row["unknown"])
    show_list(
        [f"{row['symbol']} {row['timeframe']}: {row['unknown']:,} of {row['expected']:,} slots are unknown" for row in odd],
        "mdms coverage --json",
    )
    if report["picture"]:
        OUT.print(f"heat map in {report['picture']}")


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


# ---- verify


@click.command()
@symbol_option
@timeframe_option
@click.option("--sample", type=click.IntRange(1), default=200, show_default=True, help="So many pages of up to 200 slots, at random.")
@click.option("--all", "whole", is_flag=True, help="Every page.")
@click.option("--repair", is_flag=True, help="Store what differs as corrections.")
@as_json
def verify(symbols: Sequence[str], timeframes: Sequence[str], sample: int, whole: bool, repair: bool, as_json: bool) -> None:
    """Read stored candles again and compare. Exit code 3 where any differs."""
    from mdms_pipeline.collect.client import connect
    from mdms_pipeline.collect.verify import verify as compared

    settings = Settings.load()
    warehouse = _warehouse(settings)
    rows = _standings(warehouse, symbols, timeframes)

    async def work() -> Any:
        async with connect(settings.exchange_url, settings.clock) as exchange:
            with _watched(as_json) as progress:
                return await compared(exchange, warehouse, rows, None if whole else sample, repair, progress=progress)

    found = asyncio.run(work())
    report = {
        "pages": found.pages,
        "read_again": found.asked,
        "candles": found.candles,
        "differing": found.differing,
        "repaired": found.repaired,
        "rescaled": {" ".join(partition): factor for partition, factor in found.rescaled.items()},
        "not_read": {" ".join(partition): why for partition, why in found.unread.items()},
        "differences": [_difference(change) for change in found.changes],
    }
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        show_verified(report)
    sys.exit(DIFFERS if found.differing else 0)


def _watched(quiet: bool) -> AbstractContextManager[Progress]:
    """A progress bar on stderr, as `cli.watched` has it."""
    import contextlib

    @contextlib.contextmanager
    def shown() -> Any:
        if quiet or not ERR.is_terminal:
            yield unwatched
            return
        name, times = TextColumn("{task.description:<16}"), (TimeElapsedColumn(), TimeLeft())
        with Bars(SpinnerColumn(), name, BarColumn(), MofNCompleteColumn(), *times, console=ERR, transient=True) as bars:
            yield stepping(bars)

    return shown()


def stepping(bars: Bars) -> Progress:
    """Steps as bars; TimeLeft hears of what is done one by one."""
    import contextlib

    @contextlib.contextmanager
    def step(name: str, total: int) -> Any:
        task = bars.add_task(name, total=total, singles=0)

        def advanced(done: int) -> None:
            bars.update(task, advance=done, singles=bars.tasks[bars.task_ids.index(task)].fields["singles"] + (done == 1))

        yield advanced
        bars.remove_task(task)

    return step


def _difference(change: Any) -> dict[str, Any]:
    from mdms_pipeline.market import PRICES_AND_AMOUNTS

    def named(values: Any) -> dict[str, float] | None:
        return None if values is None else dict(zip(PRICES_AND_AMOUNTS, values, strict=True))

    return {
        "symbol": change.symbol, "timeframe": change.timeframe, "opened_at": iso(change.opened_at),
        "stored": named(change.old), "told": named(change.new),
    }  # fmt: skip


def show_verified(report: dict[str, Any]) -> None:
    """What was read again, and what differs."""
    OUT.print(
        f"{report['read_again']:,} of {report['pages']:,} pages read again, {report['candles']:,} candles compared: "
        f"{report['differing']:,} differ, {report['repaired']:,} repaired"
    )
    for partition, factor in report["rescaled"].items():
        OUT.print(f"[bold]{partition}[/bold]: the whole history is told {factor:g} times as high: a redenomination")
    show_list([f"{partition} was not read: {why}" for partition, why in report["not_read"].items()], "mdms verify --json")
    show_list([_said(row) for row in report["differences"]], "mdms verify --json")


def _said(row: dict[str, Any]) -> str:
    at = f"{row['symbol']} {row['timeframe']} {row['opened_at']}"
    if row["stored"] is None or row["told"] is None:
        return f"{at}: {'told, but not stored' if row['stored'] is None else 'stored, but not told'}"
    odd = [f"{name} {row['stored'][name]:g} is told as {told:g}" for name, told in row["told"].items() if told != row["stored"][name]]
    return f"{at}: {', '.join(odd)}"


# ---- reconcile


@click.command()
@click.option("--since", callback=date_of, help="Only candles from this date on (UTC); else the whole store.")
@as_json
def reconcile(since: int | None, as_json: bool) -> None:
    """Whether finer candles add up to the coarser ones that they cover. Exit code 3 where any does not."""
    from mdms_pipeline.store.checks import SHOWN, unreconciled

    with _warehouse(Settings.load()).read() as connection:
        odd = unreconciled(connection, since)
    if as_json:
        rows = [{**asdict(one), "opened_at": iso(one.opened_at)} for one in odd]
        click.echo(json.dumps({"differing": len(odd), "candles": rows}, ensure_ascii=False, indent=2))
    else:
        more = f"the first {SHOWN:,}" if len(odd) == SHOWN else f"{len(odd):,}"
        OUT.print(f"{more} coarser candles differ from their finer ones" if odd else "Finer candles add up to all coarser ones.")
        show_list([f"{one.symbol} {one.timeframe} {iso(one.opened_at)}: {one.said}" for one in odd], "mdms reconcile --json")
    sys.exit(DIFFERS if odd else 0)


commands = (coverage, verify, reconcile)
