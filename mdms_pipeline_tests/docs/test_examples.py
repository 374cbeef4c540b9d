"""Every example of the documentation runs."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

from mdms_pipeline.screen import Screen, load_screen
from mdms_pipeline.store.schema import BARS, TABLES, VIEW
from mdms_pipeline.vocabulary import vocabulary
from mdms_pipeline_tests.docs.conftest import Run
from mdms_pipeline_tests.docs.pages import PAGES, Block, blocks, coded, table_of

MAY_BE_EMPTY = ("what is not fresh", "nobody traded", "signals and how long")  # in a healthy warehouse where nobody listened


def said_path(block: Block) -> str | None:
    """The path that a block's first line names: the block is that file."""
    first = block.code.split("\n", 1)[0]
    return first.removeprefix("# ") if first.startswith("# ") and "/" in first else None


QUERIES = [(page, block) for page in PAGES for block in blocks(page, "sql")]
SNIPPETS = [(page, block) for page in PAGES for block in blocks(page, "python") if said_path(block) is None]
FILES = [block for block in blocks("README.md") if block.language in ("python", "yaml") and said_path(block)]


def extensions(folder: Path) -> Path:
    """The files of the README, where it says that they are."""
    for block in FILES:
        file = folder / str(said_path(block))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.code, encoding="utf-8")
    return folder / "my_extensions"


@pytest.mark.parametrize(("page", "block"), QUERIES)
def test_queries(home: Path, page: str, block: Block) -> None:
    with duckdb.connect(home / "mdms.duckdb", read_only=True) as connection:
        rows = connection.execute(block.code).fetchall()
    assert rows or any(words in block.code for words in MAY_BE_EMPTY)


def test_every_table_is_described_and_no_other(home: Path) -> None:
    described = [coded(row[0])[0] for row in table_of("docs/warehouse.md", "`candles`")]
    assert set(described) == {*TABLES, VIEW, BARS, "rsi"}


@pytest.mark.parametrize(("page", "block"), SNIPPETS)
def test_snippets(home: Path, python: Run, page: str, block: Block) -> None:
    python("-W", "error", "-c", block.code)


def test_the_notebook_example_finds_what_it_says(home: Path, python: Run) -> None:
    code = SNIPPETS[0][1].code + "\nprint(*bars.columns, *ratio.columns, len(bars), bars.index.name, bars.index.tz, sep='|')"
    columns = "close|rsi_14|macd_12_26_9_line|macd_12_26_9_signal|macd_12_26_9_histogram|close / sma(37) - 1"
    assert python("-c", code).stdout.strip() == f"{columns}|60|opened_at|UTC"


def test_the_screen_example_loads(tmp_path: Path) -> None:
    extensions(tmp_path)
    loaded = load_screen(tmp_path / "my_extensions/screens/golden_cross.yaml", vocabulary())
    assert isinstance(loaded, Screen), loaded


def test_the_extension_becomes_an_indicator_an_asset_and_a_word(home: Path, python: Run, tmp_path: Path) -> None:
    folder = str(extensions(tmp_path))
    planned = json.loads(python("-m", "mdms_pipeline.cli", "plan", "roc(12)", "--json", MDMS_EXTENSIONS=folder).stdout)
    assert [(entry["indicator"], entry["first"]) for entry in planned["order"]] == [("roc(12)", 12)]
    check = """
import numpy as np, mdms_pipeline
from mdms_pipeline.calculate.catalog import KINDS
from mdms_pipeline.calculate.run import run
bars = mdms_pipeline.frame(["close", "roc(12)", "100 * roc(5)"], "KRW-BTC", "1h")
wanted = bars["close"].pct_change(12)
assert np.allclose(bars["roc_12"], wanted, equal_nan=True, rtol=1e-12, atol=1e-14), bars
roc, close = KINDS["roc"](12), bars["close"].to_numpy().copy()
_, whole = run(roc, roc.memory, [close])
for at in range(len(close)):
    memory, head = run(roc, roc.memory, [close[:at].copy()])
    _, tail = run(roc, memory, [close[at:].copy()])
    assert np.concatenate([head, tail], axis=1).tobytes() == whole.tobytes(), at
from mdms_pipeline.definitions import defs
names = {key.to_user_string() for key in defs().resolve_asset_graph().get_all_asset_keys()}
assert {"roc", "golden_cross"} <= names, names
"""
    python("-c", check, MDMS_EXTENSIONS=folder)
