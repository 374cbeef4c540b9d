"""Let the pipeline refresh itself over simulated hours, on the sandbox with a fast clock, and check what it did.

    .venv/bin/python scripts/simulate.py [--hours 2 --speed 2 --symbols KRW-BTC,KRW-ETH,KRW-XRP --down 4 --shots .tmp/simulate]

1. `mdms dev` is started in a temporary home, as a user starts it: webserver, daemon, sensors. MDMS_CLOCK makes market time fast
2. in the middle every process of it is killed with SIGKILL; after `--down` simulated minutes it is started again
3. at the end Dagster's runs, the warehouse and the exchange are compared

A tick of a sensor comes every 5 s and a run takes 5 to 10, so a 1m close must not come faster than every 20 s: speed 3. Faster,
and a run serves several closes at once: nothing is lost, which the checks hold, but "one run each" no longer is.
Exit code 0: every check holds. The prune and the times of screens stay on the machine's clock.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START = "2026-11-20T08:55"  # of the simulation; a 1h candle closes after five minutes
SCREENS = {
    name: f'title: Movers\ntimeframe: {timeframe}\nwhere: close > 0\nrank: {{expression: "close / close[1]", direction: desc}}\n'
    for name, timeframe in (("minute_movers", "1m"), ("hour_movers", "1h"))
}


@dataclass(frozen=True)
class Run:
    run_id: str
    timeframes: tuple[str, ...]
    status: str
    start: float  # s, the machine's clock
    end: float
    why: str


def main() -> int:
    options = arguments()
    home = Path(options.home or tempfile.mkdtemp(prefix="mdms-simulate-"))
    prepare(home, options)
    port = options.port or free_port()
    print(f"home {home}, UI on port {port}, {options.speed:g} x: a 1m close each {60 / options.speed:.1f} s", flush=True)
    half = options.hours * 3600 / options.speed / 2
    process = start(home, port)
    try:
        pause(half, "first half")
        kill(process)
        killed_at = time.time()
        print(f"killed at {simulated()}", flush=True)
        time.sleep(options.down * 60 / options.speed)
        started_at = time.time()
        process = start(home, port)
        print(f"started again at {simulated()}", flush=True)
        pause(half, "second half")
        stopped_at = time.time()
        ticks = tick_history(port)
        if options.shots:
            shots(port, Path(options.shots))
    finally:
        stop(process)
    ok = report(options, (killed_at, started_at), stopped_at, ticks)
    print("every check holds" if ok else "SOMETHING DOES NOT HOLD")
    return 0 if ok else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=2.0, help="simulated hours, downtime not counted")
    parser.add_argument("--speed", type=float, default=2.0)
    parser.add_argument("--down", type=float, default=4.0, help="simulated minutes between the kill and the next start")
    parser.add_argument("--symbols", default="KRW-BTC,KRW-ETH,KRW-XRP")
    parser.add_argument("--history", type=int, default=120)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--home", default="")
    parser.add_argument("--shots", default="", help="folder for pictures of the UI; needs chromium")
    return parser.parse_args()


def prepare(home: Path, options: argparse.Namespace) -> None:
    """The environment of every process, and two screens, one for each timeframe."""
    (home / "extensions" / "screens").mkdir(parents=True, exist_ok=True)
    for name, text in SCREENS.items():
        (home / "extensions" / "screens" / f"{name}.yaml").write_text(text)
    os.environ.update(
        MDMS_HOME=str(home), MDMS_EXCHANGE_URL="sandbox", MDMS_TIMEFRAMES="1m,1h", MDMS_SYMBOLS=options.symbols,
        MDMS_HISTORY=str(options.history), MDMS_EXTENSIONS=str(home / "extensions"),
        MDMS_CLOCK=f"{options.speed:g}x@{START}@{time.time():.0f}", DAGSTER_DISABLE_TELEMETRY="1",
    )  # fmt: skip


def simulated() -> str:
    from mdms_pipeline.market import utc
    from mdms_pipeline.settings import Settings

    return utc(int(Settings.load().clock()))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ---- processes


def start(home: Path, port: int) -> subprocess.Popen[bytes]:
    log = (home / "dev.log").open("ab")
    command = [sys.executable, "-m", "mdms_pipeline.cli", "dev", "--port", str(port)]
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def pause(seconds: float, what: str) -> None:
    end = time.time() + seconds
    while time.time() < end:
        time.sleep(min(60.0, max(0.1, end - time.time())))
        print(f"  {what}: {simulated()}", flush=True)


def family(pid: int) -> list[int]:
    """The process and all below it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """As the power cut does."""
    for pid in family(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def stop(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does, and what is left then as a kill does."""
    if process.poll() is not None:
        return
    members = family(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


# ---- the UI


def tick_history(port: int) -> Counter[str]:
    """Ticks of the sensor `refresh` by status, as the UI asks for them."""
    import httpx

    query = """{ sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "mdms_pipeline",
        sensorName: "refresh"}) { __typename ... on Sensor { sensorState { ticks(limit: 500) { status timestamp runIds } } } } }"""
    answer = httpx.post(f"http://127.0.0.1:{port}/graphql", json={"query": query}, timeout=30).json()
    found = answer["data"]["sensorOrError"]
    if found["__typename"] != "Sensor":
        raise SystemExit(f"the UI does not know the sensor: {answer}")
    return Counter(tick["status"] for tick in found["sensorState"]["ticks"])


def shots(port: int, folder: Path) -> None:
    """Pictures of the tick history and of the runs."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"refresh_ticks": "/locations/mdms_pipeline/sensors/refresh", "runs": "/runs", "automation": "/automation"}
    for name, path in pages.items():
        command = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1600,1100",
            "--virtual-time-budget=15000", f"--screenshot={folder / name}.png", f"http://127.0.0.1:{port}{path}",
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=120, check=False)


# ---- what it did


def report(options: argparse.Namespace, down: tuple[float, float], stopped_at: float, ticks: Counter[str]) -> bool:
    from mdms_pipeline.settings import Settings

    settings = Settings.load()
    runs = [run for run in refreshes(settings) if run.end < stopped_at]  # what was under way then was ended by us
    checks = {
        "no two refresh runs overlap": overlaps(runs),
        "every run ended well, but for what was killed": [
            f"{run.run_id[:8]} {run.status}" for run in runs if run.status != "SUCCESS" and not run.start <= down[0] <= run.end + 120
        ],
        "no gap: the candles are the exchange's": gaps(settings),
        "each ranking was made by each run of its timeframe": unranked(settings, runs),
        "each close was served by one run": twice(settings, runs),
        "the downtime was caught up with by one run per timeframe": caught_up(settings, runs, down),
    }
    print(f"\nticks of the sensor refresh, as the UI tells them (newest 500): {dict(ticks)}")
    print(f"{'timeframe':<10} {'closes':>7} {'runs':>6} {'served alone':>13} {'served with others':>19} {'in the downtime':>16}")
    for name in settings.timeframes:
        row = served(settings, runs, name, down)
        print(f"{name:<10} {row['closes']:>7} {row['runs']:>6} {row['alone']:>13} {row['together']:>19} {row['down']:>16}")
    seconds = sorted(run.end - run.start for run in runs if run.status == "SUCCESS")
    print(f"a run took {seconds[len(seconds) // 2]:.1f} s (median of {len(seconds)})\n" if seconds else "there was no run\n")
    for check, wrong in checks.items():
        print(f"{'ok  ' if not wrong else 'FAIL'} {check}" + (f": {'; '.join(wrong[:5])}" if wrong else ""))
    return bool(runs) and not any(checks.values())


def refreshes(settings: Any) -> list[Run]:
    """The refresh runs, oldest first."""
    import dagster as dg

    from mdms_pipeline.defs.refresh import JOB, TIMEFRAMES_TAG, WHY_TAG
    from mdms_pipeline.defs.run import use_home

    with use_home(settings) as instance:
        records = instance.get_run_records(dg.RunsFilter(job_name=JOB), ascending=True)
    return [
        Run(
            record.dagster_run.run_id,
            tuple(record.dagster_run.tags[TIMEFRAMES_TAG].split(",")),
            record.dagster_run.status.value,
            record.start_time or 0.0,
            record.end_time or record.update_timestamp.timestamp(),
            record.dagster_run.tags.get(WHY_TAG, ""),
        )
        for record in records
    ]


def query(settings: Any, text: str, *arguments: object) -> list[tuple[Any, ...]]:
    from mdms_pipeline.store import Warehouse

    with Warehouse(settings.warehouse, settings.exchange_url).read() as connection:
        return connection.execute(text, list(arguments)).fetchall()


def overlaps(runs: list[Run]) -> list[str]:
    started = [run for run in runs if run.start]
    return [f"{one.run_id[:8]} and {two.run_id[:8]}" for one, two in pairwise(started) if two.start < one.end]


def gaps(settings: Any) -> list[str]:
    """Partitions whose stored candles are not what the exchange has of the span that they cover."""
    from mdms_pipeline.market import TIMEFRAMES
    from mdms_pipeline.sandbox import Sandbox

    exchange, wrong = Sandbox(clock=settings.clock), []
    for symbol, name, start, end in query(
        settings, "SELECT symbol, timeframe, epoch(covered_from)::BIGINT, epoch(covered_to)::BIGINT FROM coverage ORDER BY ALL"
    ):
        truth = exchange.candles(symbol, TIMEFRAMES[name], end, TIMEFRAMES[name].slots(start, end))
        truth = truth[truth.opened_at >= start]
        held = query(
            settings, "SELECT epoch(opened_at)::BIGINT, close FROM candles WHERE symbol = ? AND timeframe = ? ORDER BY 1", symbol, name
        )
        if held != list(zip(truth.opened_at.tolist(), truth.close.tolist(), strict=True)):
            wrong.append(f"{symbol} {name}: {len(held)} held, {len(truth)} there are")
    return wrong


def served_closes(settings: Any, name: str) -> list[tuple[str, int]]:
    """(run id, newest close that it asked for) of each collection of a timeframe, in order."""
    from mdms_pipeline.market import SETTLE, TIMEFRAMES

    rows = query(
        settings, "SELECT run_id, epoch(started_at)::BIGINT FROM work WHERE step = 'candles' AND timeframe = ? ORDER BY rowid", name
    )
    return [(run_id, TIMEFRAMES[name].floor(at - SETTLE)) for run_id, at in rows]


def closes_of(settings: Any, name: str) -> list[int]:
    """Every close between the first collection of a timeframe and the last."""
    from mdms_pipeline.market import TIMEFRAMES

    found = [close for _, close in served_closes(settings, name)]
    frame = TIMEFRAMES[name]
    return [frame.after(found[0], i) for i in range(frame.slots(found[0], found[-1]) + 1)] if found else []


def served(settings: Any, runs: list[Run], name: str, down: tuple[float, float]) -> dict[str, int]:
    """How many closes had a run of their own."""
    closes, mine = closes_of(settings, name), served_closes(settings, name)
    own = {close for _, close in mine}
    missed = [close for close in closes if close not in own]
    in_downtime = [close for close in missed if down[0] <= real(settings, close) <= down[1]]
    together = len(missed) - len(in_downtime)
    return {"closes": len(closes), "runs": len(mine), "alone": len(own), "together": together, "down": len(in_downtime)}


def twice(settings: Any, runs: list[Run]) -> list[str]:
    """Closes that more than one successful run collected."""
    good = {run.run_id for run in runs if run.status == "SUCCESS"}
    wrong = []
    for name in settings.timeframes:
        counted = Counter(close for run_id, close in served_closes(settings, name) if run_id in good)
        wrong += [f"{name} {close}: {count} runs" for close, count in counted.items() if count > 1]
    return wrong


def unranked(settings: Any, runs: list[Run]) -> list[str]:
    """Successful runs that did not make the ranking of their timeframe."""
    import dagster as dg

    from mdms_pipeline.defs.run import use_home

    wrong = []
    with use_home(settings) as instance:
        for name, screen in (("1m", "minute_movers"), ("1h", "hour_movers")):
            made = instance.fetch_materializations(dg.AssetKey(screen), limit=5000).records
            ranked = {record.event_log_entry.run_id for record in made}
            wrong += [
                f"{run.run_id[:8]} {screen}"
                for run in runs
                if name in run.timeframes and run.status == "SUCCESS" and run.run_id not in ranked
            ]
    return wrong


def caught_up(settings: Any, runs: list[Run], down: tuple[float, float]) -> list[str]:
    """Timeframes for which more, or less, than one run collected what closed while nothing ran."""
    wrong = []
    for name in settings.timeframes:
        good = {run.run_id for run in runs if run.start >= down[1] and run.status == "SUCCESS"}
        after = [(run_id, close) for run_id, close in served_closes(settings, name) if run_id in good]
        missed = {close for close in closes_of(settings, name) if down[0] <= real(settings, close) < down[1]}
        late = [close for _, close in after if close in missed]
        if missed and (len(late) > 1 or not after):
            wrong.append(f"{name}: {len(missed)} closes were missed, {len(late)} of them have a run of their own, {len(after)} runs since")
    return wrong


def real(settings: Any, at: float) -> float:
    """The machine's instant at which the fast clock shows `at`."""
    clock = settings.clock
    return float(clock.anchor + (at - clock.start) / clock.speed)


if __name__ == "__main__":
    sys.exit(main())
