"""Where the ledger of `pace.py` is kept between two decisions: in memory, or in one small file that all processes of this machine share.

A budget does one thing: `change(decide)` hands the ledger and the present to a pure function, keeps the ledger that it returns, and
answers with the rest.

The shared file belongs to one exchange, not to one MDMS_HOME: two homes have one address. It is read and written under an operating-system
lock, which ends with its holder, however that ends; it is opened anew each time, so a file that is deleted, or a process that forks, does
no harm. It begins with a checksum: what cannot be read is as good as no file, and the next answers tell again what it held.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from mdms_pipeline.collect.pace import Block, Ledger, Pace, Second

T = TypeVar("T")
Decide = Callable[[Ledger, float], tuple[Ledger, T]]

log = logging.getLogger(__name__)

SHARED = Path("/var/tmp")  # one for all users, and outlasts a restart of the machine as a block does
RETRY = 0.001  # s between two tries for the lock, which is held for some 50 us
PATIENCE = 1.0  # s for the lock; whoever holds it longer is stopped, and must not stop us
LARGEST = 65_536  # bytes; nothing of ours is


class Unreadable(ValueError):
    """What is in the file is nothing that we wrote, or not all of it."""


class Budget(Protocol):
    """The one place where the requests of several askers meet."""

    async def change(self, decide: Decide[T]) -> T:
        """Let `decide(ledger, now)` replace the ledger; what it answers besides."""
        ...


@dataclass
class MemoryBudget:
    """The budget of one client alone."""

    clock: Callable[[], float] = time.monotonic
    ledger: Ledger = field(default_factory=Ledger)

    async def change(self, decide: Decide[T]) -> T:
        self.ledger, answer = decide(self.ledger, self.clock())
        return answer


@dataclass
class SharedBudget:
    """The budget of every process of this machine that names the same file. Where the file cannot be had, that of this client alone."""

    path: Path
    clock: Callable[[], float] = time.time  # the same in all processes
    _alone: MemoryBudget | None = None

    async def change(self, decide: Decide[T]) -> T:
        if self._alone is None:
            try:
                return await self._change(decide)
            except OSError as error:
                log.warning("%s cannot be used (%s): requests of other processes are not counted", self.path, error)
                self._alone = MemoryBudget(self.clock)
        return await self._alone.change(decide)

    async def _change(self, decide: Decide[T]) -> T:
        file = await _locked(self.path)
        try:
            before = _read(file, self.path)
            ledger, answer = decide(before, self.clock())
            if ledger != before:
                os.pwrite(file, pack(ledger), 0)
            return answer
        finally:
            os.close(file)  # gives the lock back


def shared_file(url: str, folder: Path | None = None) -> Path:
    """The file of all that ask the exchange at `url`, by its host and port; in `folder`, else where all users of the machine may write."""
    parts = urlsplit(url.lower())
    host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    name = hashlib.sha256(f"{host}:{port}".encode()).hexdigest()[:12]
    if folder is None:
        folder = SHARED if os.access(SHARED, os.W_OK) else Path(tempfile.gettempdir())
    return folder / f"mdms-budget-{name}.json"


def known_block(url: str, now: float, folder: Path | None = None) -> Block | None:
    """The 418 that shuts out all processes of this machine at `now` (s), as far as any of them knows. Asks nobody."""
    try:
        return unpack(shared_file(url, folder).read_bytes()[:LARGEST]).blocked(now)
    except (OSError, Unreadable):
        return None


def pack(ledger: Ledger) -> bytes:
    """Checksum and length in hex, then JSON: what an older, longer state leaves behind it does not count."""
    body = json.dumps(asdict(ledger), separators=(",", ":")).encode()
    return b"%08x %08x %s\n" % (zlib.crc32(body), len(body), body)


def unpack(data: bytes) -> Ledger:
    """The ledger that `pack` wrote. Raises Unreadable."""
    try:
        checksum, size = int(data[:8], 16), int(data[9:17], 16)
        body = data[18 : 18 + size]
        if len(body) != size or zlib.crc32(body) != checksum:
            raise ValueError("its checksum is wrong")
        found = json.loads(body)
        block = found["block"]
        return Ledger({group: _pace(row) for group, row in found["paces"].items()}, None if block is None else Block(**block))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"is not a budget: {error}") from None


def _pace(row: dict[str, Any]) -> Pace:
    """JSON has no tuples, and no classes."""
    slowed = None if row["slowed"] is None else (row["slowed"][0], row["slowed"][1])
    return Pace(**{**row, "sent": tuple(row["sent"]), "second": Second(**row["second"]), "slowed": slowed})


def _read(file: int, path: Path) -> Ledger:
    data = os.pread(file, LARGEST, 0)
    try:
        return unpack(data) if data else Ledger()
    except Unreadable as error:
        log.warning("%s %s; it starts anew", path, error)
        return Ledger()


async def _locked(path: Path) -> int:
    """The file, open and ours until it is closed. The event loop goes on while another process holds it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        file = _opened(path)
        try:
            while not _lock(file) and time.monotonic() < deadline:
                await asyncio.sleep(RETRY)
            if os.fstat(file).st_nlink:
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # deleted in between: the others have a new one


def _lock(file: int) -> bool:
    """Between processes, and between two clients of one process: each has the file open for itself."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _opened(path: Path) -> int:
    """Made if need be, for all users: whoever runs this, the address is the same. A link is not followed: anybody may write beside it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, flags)
    os.fchmod(file, 0o666)
    return file
