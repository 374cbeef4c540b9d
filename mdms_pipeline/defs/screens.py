"""`screen_results`: every symbol judged by every screen. Below it one ranking per screen, as a table and a picture."""

import base64
from collections.abc import Sequence
from typing import Any

import dagster as dg

from mdms_pipeline.defs.grid import GRID, OWNERS, by_timeframe, markdown, newest, partitions_of, tell
from mdms_pipeline.defs.refresh import TIMEFRAMES_TAG
from mdms_pipeline.defs.resources import WarehouseResource
from mdms_pipeline.drawing import GREY, blank, font, png
from mdms_pipeline.market import iso, kst, utc
from mdms_pipeline.screen.judge import ScreenResult
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.screen.look import Ranked, ranking, screen_all
from mdms_pipeline.vocabulary import tables

# Pixels of a ranking's picture: all of it, the symbols at the left, the values at the right, the title, one place.
WIDTH, LEFT, RIGHT, TITLE, ROW = 560, 100, 70, 36, 24
BAR = (59, 111, 182)
WORD_JOINER = "\u2060"  # browsers break Korean between any two syllables; this keeps a name on one line


def screen_results_asset(screens: Sequence[Screen]) -> dg.AssetsDefinition:
    """The asset that judges all symbols by these screens; its edges are what their rules read."""
    edges = sorted({table for screen in screens for table in tables((*screen.series, *screen.calls))} | {"candles"})

    @dg.asset(
        group_name="screen", kinds={"duckdb"}, owners=OWNERS, deps=edges,
        partitions_def=GRID, backfill_policy=dg.BackfillPolicy.single_run(),
        metadata={"dagster/table_name": "screen_results"},
    )  # fmt: skip
    def screen_results(context: dg.AssetExecutionContext, warehouse: WarehouseResource) -> dg.MaterializeResult[None]:
        """What each screen says of each symbol at its timeframe's newest slot: the verdict, and the value of every clause."""
        store, mine = warehouse.warehouse, asked_screens(context.run, screens)
        rows = 0
        for name, symbols in by_timeframe(partitions_of(context)).items():
            done = screen_all(store, [screen for screen in mine if screen.timeframe.name == name], name, context.run.run_id)
            rows += done.rows
            tell(context, {(symbol, name): _told(symbol, done.results) for symbol in symbols})
        return dg.MaterializeResult(metadata={"rows_changed": rows})

    return screen_results


def asked_screens(run: dg.DagsterRun, screens: Sequence[Screen]) -> list[Screen]:
    """The screens that a run is to judge: those whose rankings it makes; all where somebody asks for `screen_results` alone."""
    selected = run.asset_selection
    if selected is None:
        return list(screens)
    named = [screen for screen in screens if dg.AssetKey(screen.name) in selected]
    return named if named or TIMEFRAMES_TAG in run.tags else list(screens)


def _told(symbol: str, results: Sequence[ScreenResult]) -> dict[str, Any]:
    outcomes = {result.screen: next((row.outcome for row in result.rows if row.symbol == symbol), "not in universe") for result in results}
    at = max((result.at for result in results), default=None)
    return {**{screen: str(outcome) for screen, outcome in outcomes.items()}, **newest(at)}


def ranking_asset(screen: Screen) -> dg.AssetsDefinition:
    """The ranking of one screen."""

    @dg.asset(
        name=screen.name,
        group_name="rankings",
        kinds={"duckdb"},
        owners=OWNERS,
        description=f"{screen.title}. {screen.description.strip()}\n\n" + "\n".join(f"- `{rule}`" for rule in screen.where),
        deps=["screen_results"],
        metadata={"dagster/table_name": "screen_results"},
    )
    def asset(context: dg.AssetExecutionContext, warehouse: WarehouseResource) -> dg.MaterializeResult[None]:
        with warehouse.get_reader() as connection:
            found = ranking(connection, screen)
        return dg.MaterializeResult(metadata=_ranking_metadata(screen, found))

    return asset


def _ranking_metadata(screen: Screen, found: Ranked | None) -> dict[str, Any]:
    if found is None:
        return {"instant": "never screened", "passed": 0}
    return {
        "instant": iso(found.at),
        "instant_kst": kst(found.at),
        "passed": found.passed,
        "judged": found.judged,
        "ranking": dg.MetadataValue.md(ranking_table(screen, found)),
        "picture": dg.MetadataValue.md(
            f"![{screen.title}](data:image/png;base64,{base64.b64encode(ranking_picture(screen, found)).decode()})"
        ),
    }


def ranking_table(screen: Screen, found: Ranked) -> str:
    """The ranking in Markdown: place, market, and the values that decided."""
    if not found.rows:
        return "no market passes"
    old, unstable = any(row.age for row in found.rows), any(row.unstable for row in found.rows)
    head = ["", "market", "name", *found.shown, *["bars old"] * old, *["unstable"] * unstable]
    lines = [
        [
            str(row.place),
            row.symbol,
            WORD_JOINER.join(row.korean_name),
            *(_number(row.values.get(name)) for name in found.shown),
            *[str(row.age)] * old,
            *[row.unstable or ""] * unstable,
        ]
        for row in found.rows
    ]
    return markdown(head, lines)


def _number(value: float | None) -> str:
    """Five digits, or whole thousands; `?` where unknown."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.5g}"


def ranking_picture(screen: Screen, found: Ranked) -> bytes:
    """The ranking as a PNG bar chart of its rank values, the first place on top."""
    rows = found.rows[:20]
    values = [row.rank_value or 0.0 for row in rows]
    least, most = min([0.0, *values]), max([0.0, *values])
    image, pen = blank(WIDTH, TITLE + ROW * max(len(rows), 1) + 30)
    pen.text((LEFT, 24), f"{screen.title}, candle of {utc(found.at)}", "black", font(13), anchor="ls")

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - least) / ((most - least) or 1.0)

    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        middle = TITLE + ROW * (i + 0.5)
        start, end = sorted((across(0.0), across(value)))
        pen.rectangle((start, middle - 8, end, middle + 8), fill=BAR)
        pen.text((LEFT - 8, middle), row.symbol, "black", font(11), anchor="rm")
        pen.text((end + 5, middle), _number(row.rank_value), "black", font(11), anchor="lm")
    if not rows:
        pen.text((WIDTH / 2, TITLE + ROW / 2), "no market passes", "black", font(13), anchor="mm")
    pen.line((across(0.0), TITLE, across(0.0), TITLE + ROW * len(rows)), fill=GREY)
    pen.text((LEFT, TITLE + ROW * max(len(rows), 1) + 18), str(screen.rank), "black", font(11), anchor="ls")
    return png(image)
