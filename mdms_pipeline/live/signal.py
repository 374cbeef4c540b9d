"""A signal: one answer that changed. A function of the data alone, so the same bars give the same signals whenever they are looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mdms_pipeline.market import Instant

STRATEGY, SCREEN = "strategy", "screen"  # sources
ENTRY, EXIT, WHERE = "entry", "exit", "where"  # rules
QUOTED = json.encoder.encode_basestring_ascii
SIGNAL = 2_000  # bytes of one in RAM at the most, its place in a dictionary included; 1.1 kB with eight values, by tracemalloc


@dataclass(frozen=True)
class Signal:
    """One answer that changed."""

    source: str  # STRATEGY or SCREEN
    name: str  # of it
    rule: str  # ENTRY, EXIT (strategies), WHERE (screens)
    symbol: str
    timeframe: str
    opened_at: Instant  # of the bar that decided
    answer: bool | None  # None: not known
    before: bool | None  # at the bar before
    values: Mapping[str, float | None]  # what decided: every leaf of the rule, by its text
    provisional: bool  # from a bar that still forms: shown and handed out, never in the table
    received_at: float  # s UTC: the frame's arrival, or when the clock closed the bar
    emitted_at: float  # s UTC
    revision: int = 0  # 1, 2, ... where the bar changed after it was thought closed

    @cached_property
    def id(self) -> str:
        """32 hexadecimal digits, the same for the same answer in every process: what exactly-once rests on."""
        words = map(QUOTED, (self.source, self.name, self.rule, self.symbol, self.timeframe))
        named = f"[{', '.join(words)}, {self.opened_at}, {self.revision}]"  # as json.dumps writes it, sooner
        return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()
