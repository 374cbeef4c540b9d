"""Where signals go: the journal first, then the table, webhooks and any callable, each on a worker of its own.

    delivery.emit(signals)                       # what `mdms live` does: written, then everybody is woken; nobody is waited for
    subscribe(print)                             # any callable, from any process of this machine: every signal from now on
    subscribe(trade, name="bot")                 # the same, and after a restart also what came meanwhile

1. `emit` appends to the journal (`journal.py`) and wakes the workers
2. each worker reads the journal from its own position: there is no queue that could fill, or that somebody could hold up
3. a receiver that fails gets the same signal again, after a pause that doubles. Only an error of its own about this one signal (it raises,
   it answers 400) is put aside after TRIES; it is told again after a restart. A server that is down is waited for
4. at least once: the position moves after the signal was taken. Who must not act twice remembers `signal.id`, which webhooks send as the
   `Idempotency-Key`. In the table each is exactly once
5. what the journal has forgotten before a receiver took it is counted (`dropped`). It never forgets what the table has not

Provisional signals, of bars that still form, are in neither journal nor table: they are handed to whoever keeps up, once.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from mdms_pipeline.live.journal import ENCODE, Journal, Reached, extend, spoken
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.market import Instant, timeframe
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import StoreError, Warehouse
from mdms_pipeline.store.signals import Watched, keep, place

LOOK = 0.2  # s between two looks at what other processes have appended
GATHER = 0.3  # s that the table waits for more, so that a close of all markets is one transaction
LAZY = 10.0  # s between two transactions that only tell how far the watches have come
AT_ONCE = 5_000  # lines in one transaction
TRIES = 5  # of a signal that a receiver does not take, though it is there
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # s between two tries, doubling
WEBHOOK_SECONDS = 5.0  # for one POST
TOLERANCE = 300.0  # s that a signature may be old
MOST_ASIDE, MOST_PROVISIONAL = 1_000, 1_000  # signals put aside, and provisional ones that wait, for one receiver
SIGNATURE = "MDMS-Signature"
REFUSED = (400, 409, 413, 415, 422)  # answers that are about this signal; all others are about the server, or the way there


class Refused(Exception):
    """A receiver that is there does not want this signal."""


class Away(Exception):
    """A receiver could not be reached; `pause` where it said how long (s)."""

    def __init__(self, said: str, pause: float | None = None) -> None:
        super().__init__(said)
        self.pause = pause


# ---- who receives


@dataclass(frozen=True)
class Receiver:
    """Somebody who is handed every signal."""

    name: str
    handle: Callable[[Signal], object]
    lasting: bool = True  # its position is kept, and it begins with the oldest signal there is; else it begins now


class Webhook:
    """POSTs a signal as JSON, signed. Raises Refused or Away where it was not taken."""

    def __init__(self, url: str, secret: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url, self._secret = url, secret
        self._http = httpx.Client(transport=transport, timeout=WEBHOOK_SECONDS)

    def __call__(self, signal: Signal) -> None:
        body = ENCODE(spoken(signal)).encode()
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": f"{signal.id}-{signal.emitted_at:.6f}" if signal.provisional else signal.id,
            SIGNATURE: signature(self._secret, body, int(time.time())),
        }
        try:
            answer = self._http.post(self._url, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Away(f"{type(error).__name__}: {error}") from error
        if answer.status_code in REFUSED:
            raise Refused(f"answered {answer.status_code}: {answer.text[:100]}")
        if not answer.is_success:
            after = answer.headers.get("Retry-After", "")
            raise Away(f"answered {answer.status_code}", float(after) if after.isdigit() else None)


def webhook(url: str, secret: str) -> Receiver:
    """The receiver at this address. Its name shows the host only: an address may hold a key."""
    return Receiver(f"webhook {urlsplit(url).hostname} {hashlib.blake2b(url.encode(), digest_size=3).hexdigest()}", Webhook(url, secret))


def signature(secret: str, body: bytes, at: int) -> str:
    """`t=1795000000,v1=5f0c...`: the HMAC-SHA256, in hex, of `1795000000.` and the body; as Stripe signs."""
    return f"t={at},v1={hmac.new(secret.encode(), b'%d.' % at + body, hashlib.sha256).hexdigest()}"


def verify(secret: str, header: str, body: bytes, now: float) -> bool:
    """Whether a body was signed with this secret, at most TOLERANCE seconds ago: for whoever receives the webhook in Python."""
    at = header.removeprefix("t=").split(",")[0]
    return (
        at.isdigit() and abs(now - int(at)) <= TOLERANCE and hmac.compare_digest(header.encode(), signature(secret, body, int(at)).encode())
    )


# ---- how they stand


@dataclass(frozen=True)
class Aside:
    """A signal that was not taken, to be told again after a restart."""

    start: int  # the position before it
    id: str
    error: str


@dataclass(frozen=True)
class Standing:
    """How a receiver stands; for the view, and on disk."""

    name: str
    position: int = 0  # all up to here was taken, put aside or dropped
    passed: int = 0  # signals up to there, since the journal began
    sent: int = 0
    failures: int = 0  # in a row, of the next signal
    error: str | None = None  # the last one; None once something got through
    dropped: int = 0  # forgotten by the journal, or pushed out of `aside`, before they were taken
    missed: int = 0  # provisional ones that it was too slow for
    aside: tuple[Aside, ...] = ()
    waiting: int = 0  # signals that it has not taken yet

    @classmethod
    def read(cls, file: Path) -> Standing | None:
        """The standing that a file holds; None where there is none, or none that can be read."""
        try:
            said = json.loads(file.read_text())
            return cls(**{**said, "aside": tuple(Aside(**one) for one in said["aside"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, file: Path) -> None:
        """Replace the file, whole or not at all. A disk that is full leaves the older one: some signals will come twice."""
        fresh = file.with_suffix(".new")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(asdict(self)))
            fresh.replace(file)
        except OSError:
            fresh.unlink(missing_ok=True)


def held_up(folder: Path) -> dict[str, str]:
    """Receiver -> what keeps signals from it, as its process has last written it down; nothing where all is well."""
    found = {}
    for standing in filter(None, map(Standing.read, sorted((folder / "receivers").glob("*.json")))):
        counts = {"refused": len(standing.aside), "lost": standing.dropped, "failures": standing.failures}
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        if said:
            found[standing.name] = f"{said}: {standing.error}" if standing.error else said
    return found


def pause(failures: int) -> float:
    """Seconds until what failed so many times in a row is tried again."""
    return 0.0 if failures == 0 else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 20))


# ---- workers


class Worker(threading.Thread):
    """Takes a turn whenever it is woken, and every LOOK seconds; `turn` says how long (s) to leave it alone before that."""

    def __init__(self, journal: Journal, standing: Standing) -> None:
        super().__init__(name=f"deliver {standing.name}", daemon=True)
        self.journal = journal
        self.ending = threading.Event()
        self._standing = standing
        self._woken = threading.Event()

    @property
    def standing(self) -> Standing:
        now = self._standing
        return replace(now, waiting=max(0, self.journal.count() - now.passed))

    def wake(self) -> None:
        self._woken.set()

    def end(self) -> None:
        self.ending.set()
        self.wake()

    def run(self) -> None:
        while not self.ending.is_set():
            if rest := self._safely():
                self.ending.wait(rest)
            else:
                self._woken.wait(LOOK)
            self._woken.clear()
        self._safely()
        self.finish()

    def _safely(self) -> float:
        """A turn. What goes wrong (the warehouse is busy, the disk is full) is shown, and tried again after a pause."""
        try:
            self.journal.refresh()
            return self.turn()
        except Exception as error:
            failures = self._standing.failures + 1
            said = str(error) if isinstance(error, StoreError) else f"{type(error).__name__} {error}"
            self._standing = replace(self._standing, failures=failures, error=said)
            return pause(failures)

    def turn(self) -> float:
        raise NotImplementedError

    def finish(self) -> None:
        """After the last turn."""


class Follower(Worker):
    """Hands the journal to one receiver, signal by signal."""

    def __init__(self, journal: Journal, receiver: Receiver) -> None:
        super().__init__(journal, Standing(receiver.name, journal.end, journal.count()))
        self.receiver = receiver
        self._file = journal.folder / "receivers" / f"{_plain(receiver.name)}.json"
        self._lock: int | None = None
        self._again: list[Aside] = []  # put aside in an earlier life
        self._provisional: deque[Signal] = deque(maxlen=MOST_PROVISIONAL)

    def hand(self, signals: Sequence[Signal]) -> None:
        """Signals that are not in the journal: told once, if it keeps up."""
        missed = max(0, len(self._provisional) + len(signals) - MOST_PROVISIONAL)
        self._provisional.extend(signals)
        if missed:
            self._note(missed=self._standing.missed + missed)

    def turn(self) -> float:
        if not self._mine():
            return 0.0
        while self._again:
            if rest := self._try_again(self._again[0]):
                return rest
            self._again.pop(0)
        while entries := self.journal.after(self._position()):
            for entry in entries:
                if entry.signal is not None and (rest := self._try(entry.signal, self._standing.position)):
                    return rest
                self._note(position=entry.end, passed=self._standing.passed + (entry.signal is not None))
        while self._provisional:
            self._tell(self._provisional.popleft())
        return 0.0

    def _position(self) -> int:
        """Where to read on; what the journal has forgotten meanwhile is counted."""
        start = self.journal.start
        if self._standing.position < start:
            passed = self.journal.count(start)
            dropped = self._standing.dropped + max(0, passed - self._standing.passed)
            self._note(position=start, passed=passed, dropped=dropped)
        return self._standing.position

    def _try_again(self, one: Aside) -> float:
        """Tell what was put aside in an earlier life, unless the journal has forgotten it."""
        signal = next((entry.signal for entry in self.journal.after(one.start, 1)), None)
        if signal is not None and signal.id == one.id:
            return self._try(signal, one.start)
        self._note(aside=self._without(one.id), dropped=self._standing.dropped + 1)
        return 0.0

    def _without(self, id: str) -> tuple[Aside, ...]:
        return tuple(one for one in self._standing.aside if one.id != id)

    def _try(self, signal: Signal, start: int) -> float:
        """Tell one signal; 0 where it is done with, else the seconds until it is tried again."""
        error = self._tell(signal)
        if error is None:
            self._note(sent=self._standing.sent + 1, failures=0)
            return 0.0
        failures = self._standing.failures + 1
        if failures < TRIES or isinstance(error, Away):
            self._note(failures=failures)
            return max(pause(failures), getattr(error, "pause", None) or 0.0)
        aside = (*self._without(signal.id), Aside(start, signal.id, self._standing.error or ""))
        dropped = self._standing.dropped + max(0, len(aside) - MOST_ASIDE)
        self._note(failures=0, aside=aside[-MOST_ASIDE:], dropped=dropped)
        return 0.0

    def _tell(self, signal: Signal) -> Exception | None:
        try:
            self.receiver.handle(signal)
        except Exception as error:  # whatever it is, it is the receiver's own
            self._note(error=str(error) if isinstance(error, Away | Refused) else f"{type(error).__name__} {error}")
            return error
        self._note(error=None)
        if self._without(signal.id) != self._standing.aside:
            self._note(aside=self._without(signal.id))
        return None

    def _note(self, **changes: Any) -> None:
        before, self._standing = self._standing, replace(self._standing, **changes)
        matter = any(getattr(before, name) != getattr(self._standing, name) for name in ("position", "aside", "failures"))
        if matter and self._lock is not None:
            self._standing.write(self._file)

    def _mine(self) -> bool:
        """Whether this process is the one that tells this receiver: of several, the first."""
        if not self.receiver.lasting or self._lock is not None:
            return True
        self._file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            self._standing = replace(self._standing, error="another process tells it", passed=self.journal.count())
            return False
        held = Standing.read(self._file) or Standing(self.receiver.name, self.journal.start, self.journal.count(self.journal.start))
        self._standing, self._again = replace(held, failures=0, error=None), list(held.aside)
        self._lock = handle
        return True

    def finish(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _plain(name: str) -> str:
    """A file's name for any receiver's."""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)[:100]


class Table(Worker):
    """Brings the journal into the warehouse, each signal exactly once, when the lock is free."""

    def __init__(self, journal: Journal, warehouse: Warehouse, clock: Callable[[], float]) -> None:
        super().__init__(journal, Standing("table", journal.start, journal.count(journal.start)))
        self.warehouse, self.clock = warehouse, clock
        self._position: int | None = None
        self._stretches: dict[str, Watched] = {}
        self._told_at = float("-inf")  # s, monotonic: the last transaction

    def turn(self) -> float:
        while self._deliver():
            pass
        return 0.0

    def _deliver(self) -> bool:
        """One transaction; whether there may be more."""
        entries = self.journal.after(self._begin(), AT_ONCE)
        news = any(entry.signal is not None or entry.watched for entry in entries)
        if not entries or not (news or self.ending.is_set() or time.monotonic() >= self._told_at + LAZY):
            return False
        if news and not self.ending.wait(GATHER):
            entries = self.journal.after(self._begin(), AT_ONCE)
        signals = [entry.signal for entry in entries if entry.signal is not None]
        stretches, watched = dict(self._stretches), list[Watched]()
        for entry in entries:
            watched += extend(stretches, entry)
        with self.warehouse.write() as connection:
            new = keep(connection, signals, watched, entries[-1].end, int(self.clock()))
        self._position, self._stretches, self._told_at = entries[-1].end, stretches, time.monotonic()
        self.journal.release(self._position)
        self._standing = Standing("table", self._position, self.journal.count(self._position), self._standing.sent + len(new))
        return len(entries) == AT_ONCE

    def _begin(self) -> int:
        """Where to read on: the first time, where the warehouse says."""
        if self._position is None:
            with self.warehouse.read() as connection:
                held = place(connection)
            known = held is not None and self.journal.start <= held <= self.journal.end
            self._position = held if held is not None and known else self.journal.start
            self._stretches = self.journal.stretches_at(self._position)
            self.journal.release(self._position)
            self._standing = replace(self._standing, position=self._position, passed=self.journal.count(self._position))
        return self._position


# ---- all of them


class Delivery:
    """All ways out of one process. `emit` waits for nobody."""

    def __init__(self, journal: Journal, receivers: Iterable[Receiver] = (), table: Table | None = None) -> None:
        self.journal = journal
        self._table = table
        self._followers: list[Follower] = []
        self._guard = threading.Lock()
        if table is not None:
            table.start()
        for receiver in receivers:
            self.add(receiver)

    @classmethod
    def open(cls, settings: Settings, warehouse: Warehouse) -> Delivery:
        """The journal, the table and the webhooks that the settings name. Raises OSError where MDMS_HOME cannot be written."""
        journal = Journal(settings.signals, settings.signal_sync)
        receivers = [webhook(url, settings.signal_secret) for url in settings.signal_urls]
        return cls(journal, receivers, Table(journal, warehouse, settings.clock))

    def emit(self, signals: Sequence[Signal], reached: Reached | None = None) -> list[Signal]:
        """Write what is new, and that these watches have reached these bars; then wake everybody. What is new, and what is provisional."""
        closed = [signal for signal in signals if not signal.provisional]
        new = self.journal.append(closed, reached=reached) if closed or reached else []
        unwritten = self.journal.trouble is not None
        fleeting = [signal for signal in signals if signal.provisional]
        for follower in self._all():
            follower.hand([*fleeting, *new] if unwritten else fleeting)
            follower.wake()
        if self._table is not None:
            self._table.wake()
        told = {id(signal) for signal in (*new, *fleeting)}
        return [signal for signal in signals if id(signal) in told]

    def reached(self, watch: str) -> Instant | None:
        """The newest bar up to which this watch was judged, in this life or an earlier one; None where it never was."""
        held = self.journal.stretch(watch)
        return None if held is None else held.until

    def watch(self, watched: Sequence[Watched]) -> None:
        """Say, before the first bar, what is judged from which bar on. A stretch that goes on where it ended stays one."""
        begun = [one for one in watched if not _goes_on(self.journal.stretch(one.watch), one)]
        if begun:
            self.journal.append((), watched=begun)

    def subscribe(self, handle: Callable[[Signal], object], name: str | None = None) -> Follower:
        """Hand every signal to `handle`; with a name also, after a restart, what came meanwhile. ValueError where the name is taken."""
        taken = {follower.receiver.name for follower in self._all()}
        if name in taken:
            raise ValueError(f"name {name!r} is taken by another receiver of this process: choose another")
        said = getattr(handle, "__qualname__", type(handle).__name__)
        return self.add(Receiver(name or f"{said} {len(taken) + 1}", handle, lasting=name is not None))

    def add(self, receiver: Receiver) -> Follower:
        follower = Follower(self.journal, receiver)
        with self._guard:
            self._followers.append(follower)
        follower.start()
        return follower

    def standings(self) -> list[Standing]:
        """How everybody stands, the table first."""
        return [*([self._table.standing] if self._table else []), *(follower.standing for follower in self._all())]

    def close(self, seconds: float = 10.0) -> None:
        """Let everybody take what there is, within so many seconds. What is left stays in the journal."""
        workers: list[Worker] = [*([self._table] if self._table else []), *self._all()]
        for worker in workers:
            worker.end()
        until = time.monotonic() + seconds
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))

    def _all(self) -> list[Follower]:
        with self._guard:
            return list(self._followers)


def _goes_on(held: Watched | None, now: Watched) -> bool:
    """Whether `now` begins within what is held, or right after it, with the same symbols."""
    if held is None or held.symbols != now.symbols or now.since < held.since:
        return False
    return now.since <= (held.since if held.until is None else timeframe(now.timeframe).after(held.until))


def subscribe(handle: Callable[[Signal], object], name: str | None = None, settings: Settings | None = None) -> Follower:
    """Hand every signal of this home to `handle`, from now on, in whatever process `mdms live` runs. `.join()` waits for ever.

    With a name also what came while nobody listened under it, as far back as the journal reaches.
    """
    return Delivery(Journal((settings or Settings.load()).signals)).subscribe(handle, name)
