"""Garbage is looked for while nothing waits, and by nobody while something does."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from mdms_pipeline.live import tidy
from mdms_pipeline.live.tidy import MOST, tidied


class Ring:
    """Holds itself: only a search gives it up."""

    def __init__(self) -> None:
        self.itself = self


def ring() -> weakref.ref[Ring]:
    return weakref.ref(Ring())


def test_it_waits_until_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "EVERY", 0.01)
    busy, before = True, gc.get_threshold()

    async def main() -> None:
        nonlocal busy
        async with tidied(lambda: not busy):
            assert gc.get_threshold()[0] == MOST
            left = ring()
            await asyncio.sleep(0.2)
            assert left() is not None
            busy = False
            async with asyncio.timeout(10):
                while left() is not None:
                    await asyncio.sleep(0.01)
        assert gc.get_threshold() == before
        assert gc.get_freeze_count() == 0

    asyncio.run(main())
