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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mdms_pipeline.live.signal import Signal
from mdms_pipeline.market import Instant
from mdms_pipeline.store.signals import Watched

SEGMENT, BOUND = 4 * 2**20, 16 * 2**20  # bytes of one file, and of all
MOST_HELD = 20_000  # lines that wait in memory for room on the disk
INDEXED = 300  # bytes in RAM of one signal's id and position at the most; tracemalloc
SHORTEST = 250  # bytes of a line with a signal: so many are kept at the most as fit into BOUND
MOST_READ = 256 * 2**10  # bytes read at once
Reached = Mapping[str, Instant]  # watch -> the newest bar of which all its symbols were judged
Said = dict[str, Any]  # a line as JSON holds it
Line = tuple[bytes, Said]

NAMES = tuple(one.name for one in fields(Signal))
ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Entry:
    """One line. One that cannot be read says nothing."""

    end: int  # the position after it: all up to there was read
    signal: Signal | None = None
    watched: tuple[Watched, ...] = ()  # stretches that begin, or (at the top of a file) go on
    reached: Reached = field(default_factory=dict)


@dataclass
class Segment:
    """One file, as far as this process knows it."""

    base: int  # the position of its first byte
    before: int = 0  # signals in all files before it, also those that are forgotten
    size: int = 0  # whole lines only
    ids: set[str] = field(default_factory=set)
    ends: list[int] = field(default_factory=list)  # positions after each signal

    @property
    def end(self) -> int:
        return self.base + self.size

    @property
    def count(self) -> int:
        return self.before + len(self.ends)


class Journal:
    """The journal of one home. Safe to use from several threads, and from several processes."""

    def __init__(self, folder: Path, sync: bool = False, segment: int = SEGMENT, bound: int = BOUND) -> None:
        """Raises OSError where the folder cannot be written."""
        self.folder, self.sync = folder, sync
        self.trouble: str | None = None  # why the last lines are not on the disk
        self.lost = 0  # lines that found no room on the disk, nor in memory
        self.broken = 0  # lines that cannot be read
        self._segment, self._bound = segment, bound
        self._released = 0
        self._held: list[Line] = []
        self._held_ids: set[str] = set()
        self._stretches: dict[str, Watched] = {}  # watch -> its newest stretch
        self._ended: dict[str, Watched] = {}  # watch -> the one before of which anything was judged
        self._guard = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        self._segments: list[Segment] = []
        with self._guard, self._turn():
            self._open()

    # ---- writing

    def append(self, signals: Sequence[Signal], watched: Sequence[Watched] = (), reached: Reached | None = None) -> list[Signal]:
        """Write what is new, in one write; the signals that were not there before. A disk that is full raises nothing: see `trouble`."""
        with self._guard:
            try:
                with self._turn():
                    self._open() if self._gone() else self._catch_up()
                    new = self._unknown(signals)
                    if lines := [*self._held, *lines_of(new, watched, reached or {})]:
                        self._write(lines)
                    self._held, self._held_ids, self.trouble = [], set(), None
            except OSError as error:
                new = self._unknown(signals)
                self._hold(new, lines_of(new, watched, reached or {}), error)
            return new

    def release(self, position: int) -> None:
        """All up to here is in the table: it may be forgotten, should the journal grow beyond its bound."""
        self._released = max(self._released, position)

    def _unknown(self, signals: Sequence[Signal]) -> list[Signal]:
        """Those that are not in the journal, each once."""
        new = {signal.id: signal for signal in signals}
        for ids in (self._held_ids, *(segment.ids for segment in self._segments)):
            for known in ids.intersection(new):
                del new[known]
        return list(new.values())

    def _write(self, lines: Sequence[Line]) -> None:
        """Add lines to the newest file, or to a new one where it is full. Raises OSError."""
        last, size = self._segments[-1], sum(len(data) for data, _ in lines)
        full = bool(last.size) and last.size + size > self._segment
        into = Segment(last.end) if full else last
        before = last if full else self._segments[-2] if len(self._segments) > 1 else None
        if into.size == 0 and before is not None:  # also where a process was killed that had just begun a file
            lines = [line_of({"before": before.count, "watched": [asdict(one) for one in self._stretches.values()]}), *lines]
        self._put(into, lines)
        if full:
            self._segments.append(into)
            self._forget()

    def _forget(self) -> None:
        """Let go of the oldest files where there are too many, as far as the table has them."""
        while sum(one.size for one in self._segments) > self._bound and self._segments[0].end <= self._released:
            self._file(self._segments.pop(0).base).unlink(missing_ok=True)

    def _put(self, segment: Segment, lines: Sequence[Line]) -> None:
        """Add lines to a file, all or none. Raises OSError."""
        data, written = b"".join(data for data, _ in lines), 0
        handle = os.open(self._file(segment.base), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.fstat(handle).st_size > segment.size:  # a line that somebody did not finish
                os.ftruncate(handle, segment.size)
            while written < len(data):
                written += os.write(handle, data[written:])
            if self.sync:
                os.fdatasync(handle)
        except OSError:
            os.ftruncate(handle, segment.size)
            raise
        finally:
            os.close(handle)
        self._note(segment, lines)

    def _hold(self, new: Sequence[Signal], lines: Sequence[Line], error: OSError) -> None:
        self._held_ids |= {signal.id for signal in new}
        self._held += lines
        self.lost += max(0, len(self._held) - MOST_HELD)
        self._held = self._held[-MOST_HELD:]
        self.trouble = f"{self.folder}: {error.strerror or error}; {len(self._held)} lines wait in memory"

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One writer at a time, of all processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
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
            if not self._gone():
                self._catch_up()
                return
            with self._turn():
                self._open()

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
    def size(self) -> int:
        """What the journal takes on the disk."""
        with self._guard:
            return sum(one.size for one in self._segments)

    @property
    def nbytes(self) -> int:
        """What its index takes in RAM."""
        with self._guard:
            return INDEXED * sum(len(one.ends) for one in self._segments)

    def stretch(self, watch: str) -> Watched | None:
        """The newest stretch of a watch, as far as it has come; None where it was never watched."""
        with self._guard:
            return self._stretches.get(watch)

    def ended(self, watch: str) -> Watched | None:
        """The stretch before the newest one, of which anything was judged; None where there is none, or it is not known any more."""
        with self._guard:
            return self._ended.get(watch)

    def stretches_at(self, position: int) -> dict[str, Watched]:
        """Watch -> its stretch as the lines up to this position tell it."""
        with self._guard:
            base = next((one.base for one in reversed(self._segments) if one.base <= position), self.start)
        found: dict[str, Watched] = {}
        while base < position and (entries := self.after(base)):
            for entry in entries:
                if entry.end <= position:
                    extend(found, entry)
            base = entries[-1].end
        return found

    def count(self, position: int | None = None) -> int:
        """How many signals there were up to this position (None: in all), since the journal began."""
        with self._guard:
            last = next((one for one in reversed(self._segments) if position is None or one.base < position), self._segments[0])
            return last.count if position is None else last.before + bisect_right(last.ends, position)

    def after(self, position: int, limit: int = 200) -> list[Entry]:
        """The entries after this position, oldest first, at most so many. A position that is forgotten counts as the start."""
        with self._guard:
            segments = [(one.base, one.end) for one in self._segments if one.end > position]
        found: list[Entry] = []
        for base, end in segments:
            at = max(base, position)
            while at < end and len(found) < limit:
                lines = self._lines(base, at, end)
                if not lines:
                    return found
                for line in lines[: limit - len(found)]:
                    at += len(line)
                    found.append(entry_of(said_in(line), at))
        return found

    def _lines(self, base: int, start: int, end: int) -> list[bytes]:
        """Whole lines between two positions of a file, as many as are read at once; none where the file was forgotten meanwhile."""
        try:
            with self._file(base).open("rb") as file:
                file.seek(start - base)
                data = file.read(min(MOST_READ, end - start))
                return (data + file.readline()).splitlines(keepends=True) if not data.endswith(b"\n") else data.splitlines(keepends=True)
        except FileNotFoundError:
            return []

    def _gone(self) -> bool:
        """Whether somebody has deleted, or shortened, what was written."""
        last = self._segments[-1]
        try:
            return self._file(last.base).stat().st_size < last.size
        except FileNotFoundError:
            return True

    def _open(self) -> None:
        """Read what there is, or begin."""
        found = sorted(int(file.stem) for file in self.folder.glob("*.jsonl") if file.stem.isdigit())
        # a new journal begins beyond all positions that one before it, deleted since, has reached: it wrote less than 1 GB a second
        self._segments = [Segment(base) for base in found or [time.time_ns()]]
        self._file(self._segments[-1].base).touch()
        for one in self._segments:
            self._learn(one)

    def _catch_up(self) -> None:
        """Read what was appended since, by whomever, up to the last whole line."""
        last = self._segments[-1]
        self._learn(last)
        while last.size and self._file(last.end).exists():
            last = Segment(last.end)
            self._segments.append(last)
            self._learn(last)
        while len(self._segments) > 1 and not self._file(self._segments[0].base).exists():  # another process has forgotten it
            self._segments.pop(0)

    def _learn(self, segment: Segment) -> None:
        """Take in the lines of a file that are not known yet."""
        file = self._file(segment.base)
        try:
            if file.stat().st_size <= segment.size:
                return
            with file.open("rb") as handle:
                handle.seek(segment.size)
                data = handle.read()
        except FileNotFoundError:
            return
        self._note(segment, [(line, said_in(line)) for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True)])

    def _note(self, segment: Segment, lines: Sequence[Line]) -> None:
        for line, said in lines:
            segment.size += len(line)
            if "id" in said:
                segment.ids.add(said["id"])
                segment.ends.append(segment.end)
            else:
                segment.before = said.get("before", segment.before)
                entry = entry_of(said, segment.end)
                for one in entry.watched:
                    if (held := self._stretches.get(one.watch)) is not None and held.since != one.since and held.until is not None:
                        self._ended[one.watch] = held
                extend(self._stretches, entry)
                self.broken += not said

    def _file(self, base: int) -> Path:
        return self.folder / f"{base:020d}.jsonl"


def extend(stretches: dict[str, Watched], entry: Entry) -> list[Watched]:
    """Bring `stretches` (watch -> the newest) up to this entry; those that it tells of."""
    told = []
    for one in entry.watched:
        held = stretches.get(one.watch)
        if held is not None and held.since == one.since:
            one = replace(one, until=max((at for at in (held.until, one.until) if at is not None), default=None))
        stretches[one.watch] = one
        told.append(one)
    for watch, until in entry.reached.items():
        held = stretches.get(watch)
        if held is not None and until > (held.until if held.until is not None else held.since - 1):
            stretches[watch] = replace(held, until=until)
            told.append(stretches[watch])
    return told


# ---- lines


def lines_of(signals: Sequence[Signal], watched: Sequence[Watched], reached: Reached) -> list[Line]:
    """One line for each signal; after them, since it says that they are there, one for the watches."""
    said = [spoken(signal) for signal in signals]
    if watched:
        said.append({"watched": [asdict(one) for one in watched]})
    if reached:
        said.append({"reached": dict(reached)})
    return [line_of(one) for one in said]


def line_of(said: Said) -> Line:
    return ENCODE(said).encode() + b"\n", said


def spoken(signal: Signal) -> Said:
    """A signal as JSON holds it: the journal's line and the webhook's body. What is not finite is not known."""
    said: Said = {"id": signal.id, **vars(signal)}
    said["values"] = {name: _known(value) for name, value in signal.values.items()}
    return said


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def heard(said: Said) -> Signal:
    """The signal that was spoken so. KeyError where a word of it is missing."""
    return Signal(**{name: said[name] for name in NAMES})


def said_in(line: bytes) -> Said:
    """What a line says; nothing where it cannot be read."""
    try:
        said = json.loads(line)
        return said if isinstance(said, dict) else {}
    except ValueError:
        return {}


def entry_of(said: Said, end: int) -> Entry:
    """A line that ends at this position. What is in it that cannot be is left out."""
    try:
        watched = tuple(Watched(**{**one, "symbols": tuple(one["symbols"])}) for one in said.get("watched", ()))
        return Entry(end, heard(said) if "id" in said else None, watched, dict(said.get("reached", {})))
    except (ValueError, KeyError, TypeError):
        return Entry(end)
