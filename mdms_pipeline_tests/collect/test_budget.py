"""One budget for all processes of a machine: what the file survives, and that who shares it shares it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mdms_pipeline.collect.budget import MemoryBudget, SharedBudget, Unreadable, known_block, pack, shared_file, unpack
from mdms_pipeline.collect.pace import Block, Ledger
from mdms_pipeline_tests.collect.simulated import Fixed, World

FULL = replace(World(Fixed(10, 0.3), changes={1_000_005.0: 5}).run(12).ledger, block=Block(5.0, 60.0, "너무 많은 요청"))
LEDGERS = [Ledger(), FULL, Ledger().departed("candles", 1.5).refused("candles", 1.5, 2.0), Ledger().departed("ticker", 0.1 + 0.2)]


def more(ledger: Ledger, now: float) -> tuple[Ledger, float]:
    """Count up; the block's length is the counter."""
    count = 1.0 if ledger.block is None else ledger.block.seconds + 1.0
    return replace(ledger, block=Block(now, count)), count


def look(ledger: Ledger, now: float) -> tuple[Ledger, Ledger]:
    return ledger, ledger


def at(path: Path, *changes: Callable[[Ledger, float], tuple[Ledger, object]]) -> list[object]:
    """What these changes of the budget in `path` answer, one after the other."""

    async def main() -> list[object]:
        budget = SharedBudget(path)
        return [await budget.change(change) for change in changes]

    return asyncio.run(main())


# ---- what is written is read


@pytest.mark.parametrize("ledger", LEDGERS)
def test_it_reads_what_it_wrote(ledger: Ledger) -> None:
    assert unpack(pack(ledger)) == ledger
    assert unpack(pack(ledger) + pack(FULL)) == ledger  # an older, longer state behind it


@pytest.mark.parametrize("data", [b"", b"{}", b"0" * 500, pack(FULL)[20:], json.dumps({"paces": 1}).encode(), os.urandom(300)])
def test_what_is_no_ledger_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        unpack(data)


def test_no_beginning_of_it_and_no_changed_byte_is_taken_for_it() -> None:
    data = pack(FULL)
    for size in range(len(data) - 1):
        with pytest.raises(Unreadable):
            unpack(data[:size])
    for place in set(range(len(data) - 1)) - {8, 17}:  # two blanks
        changed = bytearray(data)
        changed[place] ^= 0x15
        with pytest.raises(Unreadable):
            unpack(bytes(changed))


def test_a_file_that_cannot_be_read_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "budget.json"
    for data in (b"x", pack(FULL)[:-20], b"\0" * 4096):
        path.write_bytes(data)
        caplog.clear()
        assert at(path, look, more, look)[:2] == [Ledger(), 1.0]
        assert "it starts anew" in caplog.text
    assert unpack(path.read_bytes()).block is not None


# ---- which file


def test_one_file_for_each_exchange(tmp_path: Path) -> None:
    upbit = shared_file("https://api.upbit.com", tmp_path)
    assert upbit == shared_file("HTTPS://API.upbit.com:443/", tmp_path)
    assert len({upbit, shared_file("https://sg-api.upbit.com", tmp_path), shared_file("http://api.upbit.com:8017", tmp_path)}) == 3
    assert shared_file("https://api.upbit.com").parent != tmp_path  # where all users of the machine may write


def test_every_user_may_write_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "budget.json"
    at(path, more)
    assert path.stat().st_mode & 0o777 == 0o666


def test_a_file_that_is_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    assert at(path, more, lambda ledger, now: (path.unlink(), more(ledger, now))[1], more) == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("spoil", [Path.mkdir, lambda path: path.symlink_to("/etc/passwd"), lambda path: path.parent.chmod(0o500)])
def test_without_the_file_each_client_is_alone(spoil: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    spoil(folder / "budget.json")
    if os.access(folder, os.W_OK) and not any(folder.iterdir()):
        return  # who may do anything, as root may, is not kept out
    assert at(folder / "budget.json", more, more) == [1.0, 2.0]
    assert caplog.text.count("requests of other processes are not counted") == 1
    folder.chmod(0o700)


# ---- many at once


def test_threads_of_one_process_share_it(tmp_path: Path) -> None:
    path, each = tmp_path / "budget.json", 50
    threads = [threading.Thread(target=at, args=(path, *[more] * each)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at(path, more) == [4 * each + 1.0]


COUNT = """
import asyncio, sys
from pathlib import Path
from mdms_pipeline.collect.budget import SharedBudget
from mdms_pipeline_tests.collect.test_budget import more

async def main(times):
    budget = SharedBudget(Path(sys.argv[1]))
    print("ready", flush=True)
    for _ in range(times):
        await budget.change(more)

asyncio.run(main(int(sys.argv[2])))
"""


def counting(path: Path, times: int) -> subprocess.Popen[str]:
    """A process that counts up so many times, once it is ready."""
    process = subprocess.Popen([sys.executable, "-c", COUNT, str(path), str(times)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_share_it_and_one_that_is_killed_harms_nobody(tmp_path: Path) -> None:
    path, each = tmp_path / "budget.json", 300
    processes = [counting(path, each) for _ in range(2)]
    victim = counting(path, 1_000_000)
    before = at(path, more)[0]
    for _ in range(20):
        time.sleep(random.uniform(0.0, 0.01))
        assert at(path, look) != [Ledger()]
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert [process.wait() for process in processes] == [0, 0]
    count = at(path, more)[0]
    assert isinstance(count, float)
    assert isinstance(before, float)
    assert count > 2 * each + 1  # no count of theirs is lost, and some are the victim's


def test_nothing_stands_still_while_another_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    at(path, more)
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    ticks = 0

    async def main() -> float:
        nonlocal ticks
        waiting = asyncio.create_task(SharedBudget(path).change(more))
        for _ in range(20):
            await asyncio.sleep(0.005)
            ticks += 1
        assert not waiting.done()
        os.close(holder)
        return await waiting

    assert asyncio.run(main()) == 2.0
    assert ticks == 20


def test_a_holder_that_was_stopped_is_not_waited_for_forever(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    at(path, more)
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        assert at(path, more) == [2.0]
    finally:
        os.close(holder)


def test_it_is_cancelled_without_leaving_the_lock_behind(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    at(path, more)
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)

    async def main() -> None:
        waiting = asyncio.create_task(SharedBudget(path).change(more))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    asyncio.run(main())
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    os.close(holder)
    assert at(path, more) == [2.0]


def test_in_memory_it_is_one_clients_own() -> None:
    budgets = [MemoryBudget(clock=lambda: 5.0) for _ in range(2)]
    assert [asyncio.run(budget.change(more)) for budget in (*budgets, budgets[0])] == [1.0, 1.0, 2.0]
    assert budgets[0].ledger.block == Block(5.0, 2.0)


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    at(path, more)
    os.utime(path, (1, 1))
    at(path, look)
    assert path.stat().st_mtime == 1


def test_a_block_is_known_to_who_asks_nobody(tmp_path: Path) -> None:
    url = "https://api.upbit.com"
    assert known_block(url, 1_000.0, tmp_path) is None
    shared_file(url, tmp_path).write_bytes(pack(Ledger().shut_out(1_000.0, 60.0, "too many requests")))
    block = known_block(url, 1_030.0, tmp_path)
    assert block is not None
    assert (block.until, block.said) == (1_060.0, "too many requests")
    assert known_block(url, 1_061.0, tmp_path) is None
    shared_file(url, tmp_path).write_bytes(b"rubbish")
    assert known_block(url, 1_030.0, tmp_path) is None
