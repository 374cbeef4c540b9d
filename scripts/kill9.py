"""Kill `mdms run` at random moments, many times, and compare with runs that nobody killed: python scripts/kill9.py --kills 200"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mdms_pipeline_tests.end_to_end.killing import differences, run, strike
from mdms_pipeline_tests.support import HOUR, NOW


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    wanted = parser.parse_args()
    dice, kills, at = random.Random(wanted.seed), 0, NOW
    with tempfile.TemporaryDirectory() as folder:
        home, whole = Path(folder) / "home", Path(folder) / "whole"
        while kills < wanted.kills:
            seconds = run(whole, at)
            kills += sum(strike(home, at, dice.uniform(0, seconds)) for _ in range(dice.randint(1, 8)))
            run(home, at)
            found = list(differences(home, whole))
            print(f"seed {wanted.seed}: {kills} kills, a run takes {seconds:.1f} s: {', '.join(found) or 'all equal'}", flush=True)
            if found:
                return 1
            at += HOUR * dice.randint(1, 30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
