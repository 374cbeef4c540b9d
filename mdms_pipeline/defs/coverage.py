"""The coverage picture beside the candles: one observation per step and six hours, not one copy per partition."""

import base64
from collections.abc import Sequence
from typing import Any

import dagster as dg

from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.heatmap import picture
from mdms_pipeline.market import HOUR, iso
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import standings
from mdms_pipeline.store.slots import Survey, survey

EVERY = 6 * HOUR  # s between two pictures of the same timeframes
AT_TAG, TIMEFRAMES_TAG = "mdms_at", "mdms_timeframes"  # when it was drawn, by the clock that candles follow, and of what


def observe_coverage(context: dg.AssetExecutionContext, store: Warehouse, mdms: Mdms, timeframes: Sequence[str]) -> None:
    """Show what every slot of these timeframes is, unless the last picture of them is younger than EVERY."""
    now = mdms.clock()
    if _drawn_lately(context, timeframes, now):
        return
    with store.read() as connection:
        rows = list(standings(connection).values())
        found = [one for name in timeframes if (one := survey(connection, name, rows, now)) is not None]
    if found:
        tags = {AT_TAG: str(int(now)), TIMEFRAMES_TAG: ".".join(timeframes)}
        context.log_event(dg.AssetObservation("candles", metadata=coverage_metadata(found), tags=tags))


def _drawn_lately(context: dg.AssetExecutionContext, timeframes: Sequence[str], now: float) -> bool:
    for record in context.instance.fetch_observations(dg.AssetKey("candles"), limit=10).records:
        observation = record.event_log_entry.asset_observation
        tags = {} if observation is None else observation.tags
        if tags.get(TIMEFRAMES_TAG) == ".".join(timeframes) and now - int(tags.get(AT_TAG, 0)) < EVERY:
            return True
    return False


def coverage_metadata(surveys: Sequence[Survey]) -> dict[str, Any]:
    """The totals as a table, the heat map as a picture, the maintenance holes as text."""
    names = ("expected", "traded", "no_trade", "maintenance", "unknown")
    rows = [f"| {one.timeframe} | " + " | ".join(f"{int(getattr(one, name).sum()):,}" for name in names) + " |" for one in surveys]
    head = f"| timeframe | {' | '.join(name.replace('_', ' ') for name in names)} |\n|{'-|' * 6}"
    image = base64.b64encode(picture(surveys)).decode()
    return {
        "slots": dg.MetadataValue.md("\n".join([head, *rows])),
        "coverage": dg.MetadataValue.md(f"![coverage](data:image/png;base64,{image})"),
        "unknown": sum(int(one.unknown.sum()) for one in surveys),
        "maintenance": [f"{one.timeframe} {iso(start)} to {iso(end)}" for one in surveys for start, end in one.holes][-20:],
    }
