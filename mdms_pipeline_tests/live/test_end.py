"""A process that is asked to end ends, whatever comes at that very moment; asked twice, it ends at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from mdms_pipeline.cli_live import _teller, _until_asked
from mdms_pipeline.collect.socket import Heard
from mdms_pipeline.live.deliver import Delivery
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.run import Live
from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.live.made import signal as made
from mdms_pipeline_tests.live.test_room import watch_of
from mdms_pipeline_tests.support import Clock

MESSAGE = Heard("KRW-S1", "1h", 0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("turns", range(8))
def test_a_message_that_comes_just_then_does_not_hold_it(warehouse: Warehouse, tmp_path: Path, turns: int) -> None:
    """Between a message's arrival and its being read the event loop turns a few times: in each of them the end may be asked for."""
    told: asyncio.Queue[Heard] = asyncio.Queue()

    async def events() -> AsyncIterator[Heard]:
        while True:
            yield await told.get()

    async def main(live: Live) -> None:
        running = asyncio.create_task(live.run(events()))
        await asyncio.sleep(0.05)
        told.put_nowait(MESSAGE)
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        done, _ = await asyncio.wait({running}, timeout=2)
        assert running in done

    with closing(Delivery(Journal(tmp_path / "signals"))) as delivery:
        asyncio.run(main(Live([watch_of("close > 1")], warehouse, ["KRW-S1"], lambda *_: None, Clock(), delivery)))  # type: ignore[arg-type]


def test_who_asks_twice_does_not_wait() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                loop.call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
                await asyncio.sleep(60)

        loop.call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
        await _until_asked(asyncio.create_task(slow()))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


def test_signals_that_are_told_after_the_reader_has_gone_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`mdms live | head -1`: the end is asked for, but what is under way tells more before it comes."""
    told: list[str] = []

    class Gone:
        def write(self, said: str) -> None:
            told.append(said)
            raise BrokenPipeError

    async def main() -> None:
        tell = _teller(as_json=True)

        async def work() -> None:
            tell([made()])
            tell([made()])
            await asyncio.sleep(60)

        async with asyncio.timeout(10):
            await _until_asked(asyncio.create_task(work()))

    monkeypatch.setattr("sys.stdout", Gone())
    asyncio.run(main())
    assert len(told) == 1
