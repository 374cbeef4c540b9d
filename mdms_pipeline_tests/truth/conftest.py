"""A sandbox of few markets: a ticker of all of them, with its extremes of 52 weeks, is most of what a universe costs."""

from __future__ import annotations

import pytest

from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline_tests.support import Clock
from mdms_pipeline_tests.truth.world import few


@pytest.fixture
def exchange(now: Clock) -> Sandbox:
    """A sandbox exchange at `now`, without limits."""
    return few(Sandbox(clock=now))
