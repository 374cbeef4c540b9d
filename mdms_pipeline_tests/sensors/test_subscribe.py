"""Followers of the events table: each on its own cursor, at least once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.journal import emit
from mdms_pipeline.store.subscribe import BATCH, Cursor, Subscriber, cursors, follow, follow_all

from ..support import NOW


@pytest.fixture
def warehouse(tmp_path):
    return Warehouse(tmp_path / "mdms.duckdb", "sandbox")


def happen(warehouse, count, type="market_data_collected"):
    with warehouse.write() as connection:
        for number in range(count):
            emit(connection, type, NOW, None, ["KRW-BTC"], "1h", number)


def held(warehouse):
    with warehouse.read() as connection:
        return {one.subscriber: one for one in cursors(connection)}


def test_each_event_comes_once_in_order_to_each_follower(warehouse):
    seen = {"a": [], "b": []}
    happen(warehouse, 3)
    follow(warehouse, "a", lambda event: seen["a"].append(event.id))
    happen(warehouse, 2)
    follow(warehouse, "a", lambda event: seen["a"].append(event.id))
    follow(warehouse, "b", lambda event: seen["b"].append(event.id))
    assert seen == {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5]}
    assert follow(warehouse, "a", lambda event: pytest.fail("again")) == Cursor("a", 5)


def test_more_than_a_batch(warehouse):
    happen(warehouse, 2 * BATCH + 1)
    seen = []
    follow(warehouse, "a", seen.append, limit=BATCH + 5)
    assert len(seen) == BATCH + 5
    follow(warehouse, "a", seen.append)
    assert [event.id for event in seen] == list(range(1, 2 * BATCH + 2))


def test_only_the_types_asked_for_and_the_cursor_passes_over_the_others(warehouse):
    happen(warehouse, 2, "screened")
    happen(warehouse, 1, "market_listed")
    happen(warehouse, 2, "screened")
    seen = []
    assert follow(warehouse, "a", lambda event: seen.append(event.type), ["market_listed"]).id == 5
    assert seen == ["market_listed"]


def test_one_that_fails_holds_back_no_other_and_gets_the_same_event_again(warehouse):
    happen(warehouse, 5)
    seen = {"good": [], "bad": []}

    def bad(event):
        seen["bad"].append(event.id)
        if event.id == 3 and seen["bad"].count(3) < 3:
            raise RuntimeError("not now")

    both = [Subscriber("bad", bad), Subscriber("good", lambda event: seen["good"].append(event.id))]
    for attempts in (1, 2):
        stand = follow_all(warehouse, both)
        assert stand["bad"].id == 2
        assert stand["bad"].attempts == held(warehouse)["bad"].attempts == attempts
        assert held(warehouse)["bad"].error == "event 3 market_data_collected: RuntimeError not now"
    assert seen["good"] == [1, 2, 3, 4, 5]
    follow_all(warehouse, both)
    assert seen["bad"] == [1, 2, 3, 3, 3, 4, 5]
    assert held(warehouse)["bad"] == Cursor("bad", 5, 0, None, held(warehouse)["bad"].tried_at)


def test_a_handler_may_use_the_warehouse_and_make_events_of_its_own(warehouse):
    happen(warehouse, 1)

    def handle(event):
        if event.type != "echo":
            happen(warehouse, 1, "echo")

    assert follow(warehouse, "a", handle).id == 1  # a turn ends with what was there when it began
    assert follow(warehouse, "a", handle).id == 2


def test_a_cursor_never_moves_back(warehouse):
    happen(warehouse, 4)

    def handle(event):
        follow(warehouse, "a", lambda event: None)  # another process under the same name comes further

    follow(warehouse, "a", handle, limit=1)
    assert held(warehouse)["a"].id == 4


def test_nothing_is_left_out_over_kills(warehouse, tmp_path):
    """Killed at any moment, an event may come again; by its id it counts once."""
    happen(warehouse, 150)
    program = textwrap.dedent(f"""
        import os, random, signal
        from pathlib import Path
        from mdms_pipeline.store import Warehouse
        from mdms_pipeline.store.subscribe import follow
        random.seed(int(os.environ["SEED"]))
        lines = open({str(tmp_path / "seen")!r}, "a")
        def handle(event):
            lines.write(f"{{event.id}}\\n"); lines.flush()
            if random.random() < 0.02:
                os.kill(os.getpid(), signal.SIGKILL)
        follow(Warehouse(Path({str(warehouse.path)!r}), "sandbox"), "a", handle)
    """)
    ended = []
    for seed in range(12):
        process = subprocess.run([sys.executable, "-c", program], env={**os.environ, "SEED": str(seed)}, check=False)
        ended.append(process.returncode)
        if process.returncode == 0:
            break
    assert -signal.SIGKILL in ended
    follow(warehouse, "a", lambda event: (tmp_path / "seen").open("a").write(f"{event.id}\n"))
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert set(seen) == set(range(1, 151))
    assert len(seen) > 150
