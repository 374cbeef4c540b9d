"""The journal: every signal is a line of JSON on disk before anything else hears of it.

1. `append` writes the signals of one moment, and how far each watch has come, in one write. Signals that are there already are left out
2. whoever delivers reads `after` a position of its own, as often as it likes: positions grow for ever, also over restarts
3. files are cut at `SEGMENT` bytes; the oldest goes when all are more than `BOUND`, but never before the table has it (`release`)

The files are `signals/<position of the first byte>.jsonl` in MDMS_HOME. A lock beside them, held for the time of a write, lets several
processes append; each learns of the others' lines before it adds its own, so of two that watch the same rule one tells a signal.

- killed within a write, the last line is torn: the next writer cuts it off, and its signals, which nobody has heard of, are found again
- a full disk: what cannot be written is held in memory (`MOST_HELD` lines) and written with the next append that can. `trouble` says so
- `sync` asks the disk to keep each write before it goes on: only a power cut can tell the difference
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mdms_pipeline.live.signal import Signal
from mdms_pipeline.market import Instant
from mdms_pipeline.store.signals import Watched

SEGMENT, BOUND = 4 * 2**20, 16 * 2**20  # bytes of one file, and of all
MOST_HELD = 20_000  # lines that wait in memory for room on the disk
MOST_READ = 256 * 2**10  # bytes read at once
Said = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One line."""

    end: int  # the position after it: all up to there was read
    signal: Signal | None = None
    watched: tuple[Watched, ...] = ()  # how far these stretches had come then


@dataclass
class Segment:
    """One file, as far as this process has read it."""

    base: int  # the position of its first byte
    size: int = 0
    ids: set[str] = field(default_factory=set)
    ends: list[int] = field(default_factory=list)  # positions after each signal

    @property
    def end(self) -> int:
        return self.base + self.size


class Journal:
    """The journal of one home. Safe to use from several threads, and from several processes."""

    def __init__(self, folder: Path, sync: bool = False, segment: int = SEGMENT, bound: int = BOUND) -> None:
        """Raises OSError where the folder cannot be written."""
        self.folder, self.sync = folder, sync
        self.trouble: str | None = None  # why the last lines are not on the disk
        self.lost = 0  # lines that found no room on the disk, nor in memory
        self.broken = 0  # lines that are not ours, or were damaged
        self._segment, self._bound = segment, bound
        self._released = 0
        self._held: list[bytes] = []
        self._held_ids: set[str] = set()
        self._watched: dict[tuple[str, Instant], Watched] = {}
        self._guard = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(int(file.stem) for file in folder.glob("*.jsonl") if file.stem.isdigit())
        # a new journal begins beyond all positions that one before it, deleted since, can have reached: it wrote less than 1 MB a second
        self._segments = [Segment(base) for base in found or [int(time.time() * 1e6)]]
        with self._guard:
            self._catch_up()

    # ---- writing

    def append(self, signals: Sequence[Signal], watched: Sequence[Watched] = ()) -> list[Signal]:
        """Write what is new, in one write; the signals that were not there before. A disk that is full raises nothing: see `trouble`."""
        with self._guard:
            try:
                with self._turn():
                    self._catch_up()
                    new = self._unknown(signals)
                    self._write([*self._held, *_lines(new, watched)])
                    self._held, self._held_ids, self.trouble = [], set(), None
            except OSError as error:
                new = self._hold(signals, watched, error)
            return new

    def release(self, position: int) -> None:
        """All up to here is in the table: it may be forgotten, should the journal grow beyond its bound."""
        self._released = max(self._released, position)

    def _unknown(self, signals: Sequence[Signal]) -> list[Signal]:
        """Those that are not in the journal, each once."""
        known = [segment.ids for segment in self._segments]
        fresh = {signal.id: signal for signal in signals if signal.id not in self._held_ids and not any(signal.id in ids for ids in known)}
        return list(fresh.values())

    def _write(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        data = b"".join(lines)
        if self._segments[-1].size and self._segments[-1].size + len(data) > self._segment:
            self._cut()
        self._put(data)
        self._catch_up()

    def _put(self, data: bytes) -> None:
        """Add to the newest file, all or nothing. Raises OSError."""
        last = self._segments[-1]
        handle = os.open(self._file(last.base), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.fstat(handle).st_size > last.size:  # a line that somebody did not finish
                os.ftruncate(handle, last.size)
            written = 0
            try:
                while written < len(data):
                    written += os.write(handle, data[written:])
                if self.sync:
                    os.fdatasync(handle)
            except OSError:
                os.ftruncate(handle, last.size)
                raise
        finally:
            os.close(handle)

    def _cut(self) -> None:
        """Begin a new file, which says first how far the watches have come; forget the oldest where they are too many."""
        self._segments.append(Segment(self._segments[-1].end))
        try:
            self._put(b"".join(_lines((), list(self._watched.values()))))
        except OSError:
            self._segments.pop()
            raise
        while sum(one.size for one in self._segments) > self._bound and self._segments[0].end <= self._released:
            self._file(self._segments.pop(0).base).unlink(missing_ok=True)

    def _hold(self, signals: Sequence[Signal], watched: Sequence[Watched], error: OSError) -> list[Signal]:
        new = self._unknown(signals)
        self._held += _lines(new, watched)
        self._held_ids |= {signal.id for signal in new}
        self.lost += max(0, len(self._held) - MOST_HELD)
        self._held = self._held[-MOST_HELD:]
        self.trouble = f"{self.folder}: {error.strerror or error}; {len(self._held)} lines wait in memory"
        return new

    @contextmanager
    def _turn(self) -> Iterator[None]:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    # ---- reading

    def refresh(self) -> None:
        """Learn of what other processes have appended."""
        with self._guard:
            self._catch_up()

    @property
    def end(self) -> int:
        """The position after the last line."""
        with self._guard:
            return self._segments[-1].end

    @property
    def start(self) -> int:
        """The position of the oldest line that is kept."""
        with self._guard:
            return self._segments[0].base

    @property
    def bytes(self) -> int:
        """What the journal takes on the disk."""
        with self._guard:
            return sum(one.size for one in self._segments)

    @property
    def watched(self) -> list[Watched]:
        """Every stretch that the journal tells of, as far as it has come."""
        with self._guard:
            return list(self._watched.values())

    def waiting(self, position: int) -> int:
        """How many signals come after this position."""
        with self._guard:
            return sum(len(one.ends) - bisect_right(one.ends, position) for one in self._segments if one.end > position)

    def after(self, position: int, limit: int = 200) -> list[Entry]:
        """The entries after this position, oldest first, at most so many. A position that is forgotten counts as the start."""
        with self._guard:
            segments = [(one.base, one.end) for one in self._segments if one.end > position]
        found: list[Entry] = []
        for base, end in segments:
            at = max(base, position)
            while at < end and len(found) < limit:
                data = self._read(base, at, min(end, at + MOST_READ))
                for line in data.splitlines(keepends=True):
                    at += len(line)
                    found.append(_entry(line, at))
                if not data:  # forgotten meanwhile
                    break
        return found[:limit]

    def _read(self, base: int, start: int, end: int) -> bytes:
        """Whole lines from `start`, as many as end before `end`, one at the least."""
        try:
            with self._file(base).open("rb") as file:
                file.seek(start - base)
                data = file.read(end - start)
                if data and not data.endswith(b"\n"):
                    whole = data.rfind(b"\n") + 1
                    data = data[:whole] if whole else data + file.readline()
                return data
        except FileNotFoundError:
            return b""

    def _catch_up(self) -> None:
        """Read what was appended since, by whomever, up to the last whole line."""
        while True:
            last = self._segments[-1]
            self._learn(last)
            if last.size == 0 or not self._file(last.end).exists():
                break
            self._segments.append(Segment(last.end))
        while len(self._segments) > 1 and not self._file(self._segments[0].base).exists():  # another process has forgotten it
            self._segments.pop(0)

    def _learn(self, segment: Segment) -> None:
        try:
            with self._file(segment.base).open("rb") as file:
                file.seek(segment.size)
                data = file.read()
        except FileNotFoundError:
            return
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            segment.size += len(line)
            entry = _entry(line, segment.end)
            if entry.signal is not None:
                segment.ids.add(entry.signal.id)
                segment.ends.append(segment.end)
            for one in entry.watched:
                self._watched[one.watch, one.since] = _further(self._watched.get((one.watch, one.since)), one)
            self.broken += entry.signal is None and not entry.watched

    def _file(self, base: int) -> Path:
        return self.folder / f"{base:020d}.jsonl"


# ---- lines


def _lines(signals: Iterable[Signal], watched: Sequence[Watched]) -> list[bytes]:
    said: list[Said] = [spoken(signal) for signal in signals]
    if watched:
        said.append({"watched": [asdict(one) for one in watched]})
    return [json.dumps(one, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n" for one in said]


def spoken(signal: Signal) -> Said:
    """A signal as JSON holds it: the journal's line and the webhook's body. What is not finite is not known."""
    said: Said = {"id": signal.id, **{one.name: getattr(signal, one.name) for one in fields(Signal)}}
    return {**said, "values": {name: _known(value) for name, value in signal.values.items()}}


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def heard(said: Mapping[str, Any]) -> Signal:
    """The signal that was spoken so. KeyError where a word of it is missing."""
    return Signal(**{one.name: said[one.name] for one in fields(Signal)})


def _entry(line: bytes, end: int) -> Entry:
    """What a line says; an entry that says nothing where it cannot be read."""
    try:
        said = json.loads(line)
        if "watched" in said:
            return Entry(end, watched=tuple(Watched(**{**one, "symbols": tuple(one["symbols"])}) for one in said["watched"]))
        return Entry(end, heard(said))
    except (ValueError, KeyError, TypeError):
        return Entry(end)


def _further(held: Watched | None, now: Watched) -> Watched:
    """Of two states of one stretch, that which has come further."""
    ends = [one.until for one in (held, now) if one is not None and one.until is not None]
    return replace(now, until=max(ends, default=None))
