"""Commands for what runs by itself: `mdms events`, `mdms alerts`, `mdms prune`. Registered by `cli.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from mdms_pipeline.market import iso
from mdms_pipeline.settings import Settings
from mdms_pipeline.show import OUT, table

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def _warehouse(settings: Settings) -> Any:
    from mdms_pipeline.store import Warehouse

    return Warehouse(settings.warehouse, settings.exchange_url, settings.memory_mb, no_trade=settings.no_trade)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


@click.command()
@click.option("--after", type=click.IntRange(0), help="Only events with a greater id; without it the last 20.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="How many at most.")
@as_json
def events(after: int | None, limit: int, as_json: bool) -> None:
    """What happened, oldest first, and how far each follower has come."""
    from mdms_pipeline.store.journal import events_after, newest_id
    from mdms_pipeline.store.subscribe import cursors

    with _warehouse(Settings.load()).read() as connection:
        newest = newest_id(connection)
        found = events_after(connection, max(0, newest - 20) if after is None else after, limit)
        followers = cursors(connection)
    if as_json:
        shown = [{**asdict(event), "at": iso(event.at)} for event in found]
        _print_json({"newest": newest, "events": shown, "followers": [asdict(follower) for follower in followers]})
        return
    rows = [
        [str(event.id), iso(event.at), event.type, event.timeframe or "", str(event.count), _some(event.symbols), (event.run_id or "")[:8]]
        for event in found
    ]
    OUT.print(table(None, ["event", "at", "type", "timeframe", "count", "symbols", "run"], rows))
    if followers:
        rows = [[one.subscriber, str(one.id), str(newest - one.id), str(one.attempts or ""), one.error or ""] for one in followers]
        OUT.print(table(None, ["follower", "event", "behind", "failures", "error"], rows))


def _some(symbols: Sequence[str]) -> str:
    return ", ".join(symbols[:3]) + (f" and {len(symbols) - 3} more" if len(symbols) > 3 else "")


@click.command(name="alerts")
@click.option("--all", "everything", is_flag=True, help="Also those that are over.")
@as_json
def show_alerts(everything: bool, as_json: bool) -> None:
    """Look for what is wrong, send what was not sent yet (file, webhook), and show it. For cron, where no daemon runs."""
    from mdms_pipeline.alerts import deliver, evaluate
    from mdms_pipeline.collect.budget import known_block
    from mdms_pipeline.store.alerts import alerts

    settings = Settings.load()
    warehouse = _warehouse(settings)
    evaluate(warehouse, settings, int(settings.clock()), known_block(settings.exchange_url, time.time()))
    told = deliver(warehouse, settings)
    with warehouse.read() as connection:
        found = alerts(connection, only_open=not everything)
    rows = [
        {**asdict(alert), "raised_at": iso(alert.raised_at), "resolved_at": alert.resolved_at and iso(alert.resolved_at)} for alert in found
    ]
    failing = {name: cursor.error for name, cursor in told.items() if cursor.error}
    if as_json:
        _print_json({"alerts": rows, "not_sent": failing})
        return
    if not rows:
        OUT.print("nothing is wrong" if not everything else "there was never an alert")
    else:
        cells = [[row["raised_at"], row["resolved_at"] or "", row["kind"], row["subject"], row["message"]] for row in rows]
        OUT.print(table(None, ["since", "until", "kind", "about", "what"], cells))
    for name, error in failing.items():
        click.echo(f"mdms: {name} could not be sent, it is tried again: {error}", err=True)


@click.command()
@as_json
def prune(as_json: bool) -> None:
    """Bring Dagster's log within MDMS_LOG_MB. The newest materialization of every partition stays; the daemon may be running."""
    from mdms_pipeline.defs.prune import prune

    settings = Settings.load()
    done = prune(settings.dagster_home, settings.log_mb * 2**20)
    if as_json:
        _print_json(asdict(replace(done, seconds=round(done.seconds, 3))))
        return
    OUT.print(
        f"{done.bytes_before / 2**20:,.1f} MB before, {done.bytes_after / 2**20:,.1f} MB now, of {settings.log_mb}; forgotten: "
        f"{done.run_logs} logs of runs, {done.events:,} events, {done.runs} rows of runs, {done.ticks:,} ticks; {done.seconds:.1f} s"
    )


commands = (events, show_alerts, prune)
