"""Kill `mdms run` at random moments, many times, and compare with a run that nobody killed: python scripts/kill9.py --kills 200"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mdms_pipeline_tests.end_to_end.killing import Killed, differences, never_killed
from mdms_pipeline_tests.support import HOUR, NOW


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    wanted = parser.parse_args()
    dice = random.Random(wanted.seed)
    with tempfile.TemporaryDirectory() as folder:
        home, whole = Path(folder) / "home", Path(folder) / "whole"
        killed, at = Killed(home, dice, seconds=5.0), NOW
        while len(killed.struck) < wanted.kills:
            for _ in range(dice.randint(1, 8)):
                killed.strike(at)
            killed.finish(at)
            never_killed(whole, at)
            found = list(differences(home, whole))
            print(f"seed {wanted.seed}: {len(killed.struck)} kills, a run takes {killed.seconds:.1f} s: {found or 'all equal'}", flush=True)
            if found:
                return 1
            at += HOUR * dice.randint(1, 30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
