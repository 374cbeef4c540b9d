"""What it costs to write a signal down before it is told: python benchmarks/journal.py [--folder DIR]

One signal, and 120 at once (a close of all markets), with what the disk does and without (`MDMS_SIGNAL_SYNC`). Median and 99th percentile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.signal import Signal

ONE = Signal(
    "strategy", "breakout", "entry", "KRW-BTC", "1h", 1_795_000_000, True, False,
    {"rsi(14)": 31.123, "close": 5e7, "sma(20)": 49_123_123.1, "volume": 123.4}, False, 1_795_000_000.123, 1_795_000_000.2,
)  # fmt: skip


def times(folder: Path, sync: bool, signals: int, rounds: int) -> list[float]:
    """Seconds of each write, ascending."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        journal, taken = Journal(Path(fresh) / "signals", sync), []
        for i in range(rounds):
            batch = [replace(ONE, opened_at=i * signals + k) for k in range(signals)]
            began = time.perf_counter()
            journal.append(batch, reached={"strategy:breakout:entry": i})
            taken.append(time.perf_counter() - began)
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=500)
    given = parser.parse_args()
    print("| signals at once | synced | median, ms | 99 %, ms |\n|---|---|---|---|")
    for signals in (1, 120):
        for sync in (False, True):
            taken = times(given.folder, sync, signals, given.rounds)
            middle, slow = (taken[int(len(taken) * share)] * 1e3 for share in (0.5, 0.99))
            print(f"| {signals} | {'yes' if sync else 'no'} | {middle:.2f} | {slow:.2f} |")


if __name__ == "__main__":
    main()
