"""The journal: whatever happens while it is written, what was told of is in it once, and nothing else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from mdms_pipeline.live.journal import Journal, spoken
from mdms_pipeline.live.signal import Signal
from mdms_pipeline_tests.live.made import AT, WATCHED, bar, signal
from mdms_pipeline_tests.support import beside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "signals"


def told(journal: Journal, limit: int = 100_000) -> list[Signal]:
    """All signals in it, read from its start in one go."""
    return [entry.signal for entry in journal.after(journal.start, limit) if entry.signal is not None]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def test_what_is_written_comes_back_as_it_was(folder: Path) -> None:
    awkward = {
        "close": 1e8 + 2**-20,
        "rsi(14)": 5e-324,
        "x": -0.0,
        "거래": 1 / 3,
        "unknown": None,
        "inf": float("inf"),
        "nan": float("nan"),
    }
    made = [signal(0, values=awkward, answer=None), signal(1, "KRW-ETH", revision=2, source="screen")]
    assert Journal(folder).append(made, reached={"w1": bar(1)}) == made
    known = {**awkward, "inf": None, "nan": None}
    assert repr(told(Journal(folder))) == repr([replace(made[0], values=known), made[1]])


def test_an_id_is_the_same_as_ever() -> None:
    """Of the words as JSON writes them: what exactly-once rests on over restarts, and over versions."""
    for one in (signal(0), signal(1, name='a "b" \\ 거래 \x07\n', revision=3), signal(2, symbol="KRW-1INCH", opened_at=-1)):
        named = (one.source, one.name, one.rule, one.symbol, one.timeframe, one.opened_at, one.revision)
        assert one.id == hashlib.blake2b(json.dumps(named).encode(), digest_size=16).hexdigest()
    assert signal(0).id == "cef03465558bfd6903e97f5489cd3ae7"


def test_a_line_has_the_words_in_their_order(folder: Path) -> None:
    one = signal(0)
    before = spoken(one)
    assert list(before) == list(spoken(one)) == ["id", *(field.name for field in fields(Signal))]


def test_each_signal_is_written_once(folder: Path) -> None:
    journal = Journal(folder)
    assert journal.append([signal(0), signal(1), signal(0)]) == [signal(0), signal(1)]
    assert journal.append([signal(1), signal(2)]) == [signal(2)]
    assert Journal(folder).append([signal(0), signal(2), signal(2, revision=1)]) == [signal(2, revision=1)]
    assert Journal(folder).count() == 4


def test_readers_go_on_from_their_own_positions(folder: Path) -> None:
    journal = Journal(folder, segment=1_000)
    made = [signal(i) for i in range(30)]
    for one in made:
        journal.append([one], reached={"w1": one.opened_at})
    assert len(files(folder)) > 5
    for limit in (1, 3, 1_000):
        read, position = [], journal.start
        while entries := journal.after(position, limit):
            assert len(entries) <= limit
            read += [entry.signal for entry in entries if entry.signal]
            position = entries[-1].end
            assert journal.count(position) == len(read)
        assert read == made
        assert position == journal.end


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_cut_off_and_told_again(folder: Path, cut: int) -> None:
    """Killed within a write: what was not written whole was not told of."""
    journal = Journal(folder)
    journal.append([signal(0), signal(1)])
    file = files(folder)[0]
    os.truncate(file, file.stat().st_size - cut)
    again = Journal(folder)
    assert told(again) == [signal(0)]
    assert again.append([signal(0), signal(1), signal(2)]) == [signal(1), signal(2)]
    assert told(Journal(folder)) == [signal(0), signal(1), signal(2)]
    assert Journal(folder).broken == 0


def test_a_damaged_line_costs_that_line_only(folder: Path) -> None:
    """A power cut may leave a block of zeros, or half of a line with another behind it."""
    journal = Journal(folder)
    for i in range(3):
        journal.append([signal(i)])
    lines = files(folder)[0].read_bytes().splitlines(keepends=True)
    for damaged in (b"\0" * 40 + b"\n", lines[1][: len(lines[1]) // 2] + lines[2], b"[1]\n", b'{"id": "x"}\n'):
        files(folder)[0].write_bytes(lines[0] + damaged + lines[2])
        assert told(Journal(folder)) == [signal(0), signal(2)]


def test_the_journal_keeps_within_its_bound_but_never_forgets_what_the_table_has_not(folder: Path) -> None:
    journal = Journal(folder, segment=2_000, bound=8_000)
    for i in range(100):
        journal.append([signal(i)])
    assert (journal.count(), len(told(journal))) == (100, 100)  # the table has nothing yet
    journal.release(journal.end)
    for i in range(100, 200):
        journal.append([signal(i)])
        journal.release(journal.end)
    assert sum(file.stat().st_size for file in files(folder)) == journal.size <= 8_000 + 2_000
    assert told(journal) == [signal(i) for i in range(200 - len(told(journal)), 200)]
    assert journal.count() == Journal(folder).count() == 200
    assert journal.count(journal.start) == 200 - len(told(journal))


def test_positions_grow_for_ever(folder: Path) -> None:
    """Also where the journal was deleted: a position kept elsewhere never points into another's middle."""
    journal = Journal(folder)
    journal.append([signal(i) for i in range(100)])
    end = journal.end
    for file in files(folder):
        file.unlink()
    assert journal.append([signal(100)]) == [signal(100)]  # who had it open goes on with a new one
    assert journal.start == Journal(folder).start > end
    assert told(journal) == told(Journal(folder)) == [signal(100)]


def test_how_far_watches_have_come_outlives_restarts_and_rotation(folder: Path) -> None:
    journal = Journal(folder, segment=1_500, bound=4_500)
    journal.append((), watched=[WATCHED])
    for i in range(60):
        journal.append([signal(i)], reached={"w1": bar(i), "unheard of": bar(i)})
        journal.release(journal.end)
    assert journal.start > min(entry.end for entry in journal.after(journal.start, 1)) - 2_000
    for one in (journal, Journal(folder)):
        assert one.stretch("w1") == replace(WATCHED, until=bar(59))
        assert one.stretch("unheard of") is None
    entries = journal.after(journal.start, 1_000)
    middle = next(entry for entry in entries[len(entries) // 2 :] if entry.reached)
    assert journal.stretches_at(middle.end) == {"w1": replace(WATCHED, until=middle.reached["w1"])}


def test_a_bar_that_was_reached_is_never_unreached(folder: Path) -> None:
    journal = Journal(folder)
    journal.append((), watched=[WATCHED], reached={"w1": bar(3)})
    journal.append((), reached={"w1": bar(2)})
    journal.append((), watched=[replace(WATCHED, until=bar(1))])
    assert Journal(folder).stretch("w1") == replace(WATCHED, until=bar(3))
    begun = replace(WATCHED, since=bar(9), symbols=("KRW-XRP",))
    journal.append((), watched=[begun])
    assert Journal(folder).stretch("w1") == begun


# ---- a full disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A disk with so many bytes of room; it takes half of what does not fit, as disks do."""
    room, write = {"left": 10**9}, os.write

    def writing(handle: int, data: bytes) -> int:
        if room["left"] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(handle, data[: room["left"]])
        room["left"] -= written
        return written

    monkeypatch.setattr(os, "write", writing)
    return room


@pytest.mark.parametrize("left", [0, 1, 300, 500])
def test_a_full_disk_tears_nothing_and_what_waited_is_written_when_there_is_room(folder: Path, disk: dict[str, int], left: int) -> None:
    journal = Journal(folder)
    journal.append([signal(0)], watched=[WATCHED])
    disk["left"] = left
    assert journal.append([signal(1), signal(2)], reached={"w1": bar(2)}) == [signal(1), signal(2)]  # told of all the same
    assert journal.append([signal(2), signal(3)]) == [signal(3)]  # and not twice
    assert "No space left on device; 4 lines wait in memory" in str(journal.trouble)
    assert told(Journal(folder)) == [signal(0)]
    disk["left"] = 10**9
    assert journal.append([signal(4)]) == [signal(4)]
    assert (journal.trouble, journal.lost) == (None, 0)
    assert told(Journal(folder)) == [signal(i) for i in range(5)]
    assert Journal(folder).stretch("w1") == replace(WATCHED, until=bar(2))


def test_a_disk_that_fills_at_rotation(folder: Path, disk: dict[str, int]) -> None:
    journal = Journal(folder, segment=600)
    journal.append([signal(0)])
    disk["left"] = 20
    journal.append([signal(1)])
    disk["left"] = 10**9
    journal.append([signal(2)])
    assert told(Journal(folder)) == told(journal) == [signal(i) for i in range(3)]
    assert Journal(folder).count() == journal.count() == 3


@pytest.mark.parametrize("torn", [b"", b'{"before": 1'])
def test_a_file_that_a_killed_process_had_just_begun_is_begun_again(folder: Path, torn: bytes) -> None:
    journal = Journal(folder, segment=900)
    journal.append([signal(0), signal(1)], watched=[WATCHED])
    (folder / f"{journal.end:020d}.jsonl").write_bytes(torn)
    again = Journal(folder, segment=900, bound=500)
    again.append([signal(2)])
    again.release(again.end)
    again.append([signal(3), signal(4)])
    for one in (again, Journal(folder)):
        assert (one.count(), one.broken, one.stretch("w1")) == (5, 0, WATCHED)
        assert told(one) == [signal(3), signal(4)]


# ---- several processes


def write_some(ready: Any, folder: Path, first: int, last: int) -> None:
    journal = Journal(folder, segment=5_000)
    ready.set()
    for i in range(first, last):
        journal.append([signal(i)], reached={"w1": AT})


def test_processes_that_watch_the_same_tell_each_signal_once(folder: Path) -> None:
    with beside(write_some, folder, 0, 150), beside(write_some, folder, 50, 200), beside(write_some, folder, 100, 160):
        pass
    journal = Journal(folder)
    assert sorted(one.opened_at for one in told(journal)) == [bar(i) for i in range(200)]
    assert (journal.broken, journal.count()) == (0, 200)


def test_each_process_learns_of_what_the_others_wrote(folder: Path) -> None:
    one, other = Journal(folder, segment=800, bound=3_000), Journal(folder, segment=800, bound=3_000)
    for i in range(0, 40, 2):
        one.append([signal(i)])
        one.release(one.end)
        assert other.append([signal(i), signal(i + 1)]) == [signal(i + 1)]
        one.refresh()
        assert (one.end, one.count(), told(one)) == (other.end, other.count(), told(other))
    assert one.start == other.start > 0
