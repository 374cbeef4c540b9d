"""Parity at the full size: a simulated month of 120 markets, 1h and 4h, with cuts, repeats, late messages and restarts.

    python scripts/live_parity.py [--symbols 120] [--days 30] [--restarts 8] [--seed 1] [--home FOLDER]

A sandbox whose clock this drives, the collecting part beside it, and `mdms live` without its terminal, begun again after each restart: some
time after it was stopped, so that what closed meanwhile must be told late. In the end everything is collected, and the signals in the
journal are compared with those that the stored candles give. Watched are the built-in strategies and screens, at 1h and at 4h whatever
their files say, and rules that turn often. Prints what happened, and every difference; exit code 1 where there is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mdms_pipeline.backtest.strategy import BUILT_IN as STRATEGIES
from mdms_pipeline.live_watch import watches_of
from mdms_pipeline.market import DAY, HOUR, instant, iso
from mdms_pipeline.screen.load import BUILT_IN as SCREENS
from mdms_pipeline.settings import Settings
from mdms_pipeline.store.universe import universe
from mdms_pipeline_tests.live import rules
from mdms_pipeline_tests.live.stream import Simulation, Steady, Trouble

BEGAN = instant("2026-10-20T00:10:20")  # the month holds the maintenance of 11 November


def watched(home: Path, given: Settings) -> tuple[Settings, list[object]]:
    """Every rule there is, at both timeframes."""
    for folder, built_in, texts in (("strategies", STRATEGIES, rules.STRATEGIES), ("screens", SCREENS, rules.SCREENS)):
        (home / "own" / folder).mkdir(parents=True, exist_ok=True)
        files = {file.stem: file.read_text() for file in built_in.glob("*.yaml")} | texts
        for name, text in files.items():
            for frame in given.timeframes:
                body = "\n".join(line for line in text.replace("{frame}", frame).replace("{{", "{").replace("}}", "}").splitlines())
                lines = [f"timeframe: {frame}" if line.strip().startswith("timeframe:") else line for line in body.splitlines()]
                indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip() and not line.startswith("timeframe:"))
                plain = [line if line.startswith("timeframe:") else line[indent:] for line in lines]
                said = "\n".join(plain).replace("{screen: rising}", f"{{screen: rising_{frame}}}")
                for made_up, real in (("KRW-AAA", "KRW-BTC"), ("KRW-BBB", "KRW-ETH"), ("KRW-CCC", "KRW-XRP")):
                    said = said.replace(made_up, real)
                (home / "own" / folder / f"{name}_{frame}.yaml").write_text(said + "\n")
    given = replace(given, extensions=home / "own")
    own = {kind: [file.stem for file in sorted((home / "own" / kind).glob("*.yaml"))] for kind in ("strategies", "screens")}
    return given, list(watches_of(given, own["strategies"], own["screens"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=120)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--timeframes", default="1h,4h")
    parser.add_argument("--history", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    home = given.home or Path(tempfile.mkdtemp())
    settings = Settings.load({
        "MDMS_HOME": str(home), "MDMS_EXCHANGE_URL": "sandbox", "MDMS_SYMBOLS": f"top:{given.symbols}",
        "MDMS_TIMEFRAMES": given.timeframes, "MDMS_HISTORY": str(given.history),
    })  # fmt: skip
    settings, watches = watched(home, settings)
    found = Simulation(settings, watches, Steady(BEGAN), given.seed, Trouble())
    clock = time.perf_counter()
    found.collect()
    with found.warehouse.read() as connection:  # from here on these: the busiest of tomorrow may be others
        found.settings = replace(settings, symbols=tuple(sorted(universe(connection))))
    print(f"{given.symbols} markets, {len(watches)} rules, {given.timeframes}; from {iso(BEGAN)}; home {home}", flush=True)
    end = BEGAN + given.days * DAY
    for i in range(given.restarts + 1):
        until = end if i == given.restarts else int(found.clock()) + (end - int(found.clock())) // (given.restarts + 1 - i)
        found.listen(until)
        life = found.lives[-1]
        said = {
            name: value for name, value in asdict(life).items() if name in ("joined", "lost", "messages", "signals", "provisional", "late")
        }
        print(f"{iso(int(found.clock()))} {said}, {time.perf_counter() - clock:.0f} s", flush=True)
        if i < given.restarts:
            found.clock.now += found.random.randint(0, 6 * HOUR)
            if found.random.random() < 0.5:
                found.collect()
    found.collect()
    wanted, differ = found.compared()
    for each in differ[:20]:
        print(each)
    lost, late = sum(life.lost for life in found.lives), sum(life.late for life in found.lives)
    print(f"{wanted} signals by the stored candles, {len(differ)} differences; {found.messages} messages, {lost} cuts, {late} told late, "
          f"{given.restarts} restarts; {time.perf_counter() - clock:.0f} s")  # fmt: skip
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
