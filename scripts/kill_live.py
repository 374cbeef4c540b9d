"""Kill `mdms live` at random moments of a fast stream, and compare with the candles: python scripts/kill_live.py --kills 100

1. candles of some sandbox markets are collected; rules that turn often stand on 1m, and the clock of every process is `--speed` as fast
2. `mdms live` is begun and killed (SIGKILL) after a random time, again and again; the first and the last one are asked to end
3. the candles are collected; the signals in the table must be those that the candles give, each once, and those in the journal;
   a webhook of this process must have got each at least once. What differs at the very last bar is named as open: nobody has heard what was
   told of it after the end, and `mdms live` would take it back when it begins
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mdms_pipeline.live.deliver import SIGNATURE, verify
from mdms_pipeline.live.journal import Journal
from mdms_pipeline.live.parity import MISSING, standing
from mdms_pipeline.live.ran import Compared, compare
from mdms_pipeline.live_watch import watches_of
from mdms_pipeline.settings import Settings
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import standings
from mdms_pipeline.store.signals import Kept, signals_after
from mdms_pipeline_tests.live import rules
from mdms_pipeline_tests.support import Mdms, Said, mdms

SYMBOLS = "KRW-BTC,KRW-ETH,KRW-XRP,KRW-DOGE,KRW-ADA,KRW-SOL,KRW-USDT,KRW-TRX"
SECRET = "the secret of this script"
LIFE = 2.5  # of a process that is killed, at most, as a multiple of the time until it judges
FEW = 10  # signals that a process which is asked to end has time for
RULES = [word for kind, names in (("--strategy", rules.STRATEGIES), ("--screen", rules.SCREENS)) for name in names for word in (kind, name)]


class Hook(ThreadingHTTPServer):
    """Takes signals; fails now and then, as servers do."""

    def __init__(self, dice: random.Random) -> None:
        self.keys: Counter[str] = Counter()
        self.unsigned = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(inner) -> None:  # noqa: N805
                body = inner.rfile.read(length := int(inner.headers["Content-Length"]))
                if len(body) < length:  # killed while it spoke
                    return
                good = dice.random() > 0.03
                if not verify(SECRET, inner.headers[SIGNATURE], body, time.time()):
                    self.unsigned += 1
                elif good:
                    self.keys[inner.headers["Idempotency-Key"]] += 1
                inner.send_response(204 if good else 503)
                inner.end_headers()

            def log_message(inner, *said: object) -> None:  # noqa: N805
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


@contextmanager
def serving(dice: random.Random) -> Iterator[Hook]:
    with Hook(dice) as hook:
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        yield hook
        hook.shutdown()


def given(home: Path, speed: float, hook: Hook) -> dict[str, str]:
    """The settings of every process."""
    rules.settings(home, "1m")
    for file in (home / "own").rglob("*.yaml"):
        text = file.read_text().replace("KRW-AAA, KRW-CCC", "KRW-BTC, KRW-XRP").replace("KRW-BBB, KRW-CCC", "KRW-ETH, KRW-ADA")
        file.write_text(text)
    return {
        "MDMS_HOME": str(home), "MDMS_EXCHANGE_URL": "sandbox", "MDMS_SYMBOLS": SYMBOLS, "MDMS_TIMEFRAMES": "1m", "MDMS_HISTORY": "2000",
        "MDMS_EXTENSIONS": str(home / "own"), "MDMS_CLOCK": f"{speed}x@2026-11-20T09:00@{time.time():.0f}", "MDMS_SIGNAL_URL": hook.url,
        "MDMS_SIGNAL_SECRET": SECRET,
    }  # fmt: skip


def ran(said: Said) -> None:
    if said.code != 0:
        raise SystemExit(f"kill_live: status {said.code}: {said.err}")


def strike(settings: dict[str, str], seconds: float, folder: Path) -> bool:
    """A live process that is killed after so many seconds; whether it had judged a bar by then."""
    journal = Journal(folder / "home" / "signals")
    begun = Mdms(["live", "--json", *RULES], settings, folder / "said")
    begun.process.join(seconds)
    begun.process.kill()
    said = begun.wait()
    if said.code != -signal.SIGKILL:
        raise SystemExit(f"kill_live: ended by itself, status {said.code}: {said.err}")
    return judges(Journal(journal.folder), journal.end)


def judges(journal: Journal, since: int) -> bool:
    """Whether any bar was judged after this position of the journal."""
    journal.refresh()
    return any(entry.reached for entry in journal.after(since, 10**9))


def finish(settings: dict[str, str], folder: Path, hook: Hook) -> float:
    """A live process that is asked to end once it judges and the webhook has nearly all; the seconds until it judged."""
    journal = Journal(folder / "home" / "signals")
    since, began = journal.end, time.monotonic()
    begun = Mdms(["live", "--json", *RULES], settings, folder / "said")
    while not judges(journal, since) and begun.process.is_alive():
        begun.process.join(0.05)
    seconds = time.monotonic() - began
    begun.process.join(seconds)
    while len(set(written(journal)) - set(hook.keys)) > FEW and begun.process.is_alive():
        begun.process.join(0.5)
        journal.refresh()
    os.kill(begun.pid, signal.SIGINT)
    ran(begun.wait())
    return seconds


def written(journal: Journal) -> Counter[str]:
    """The ids of the journal's signals."""
    return Counter(entry.signal.id for entry in journal.after(journal.start, 10**9) if entry.signal)


def judged(home: Path, settings: dict[str, str], hook: Hook) -> tuple[list[str], Compared, list[Kept]]:
    """What is wrong, what was compared, and the table."""
    ran(mdms("collect", given=settings))
    loaded = Settings.load(settings)
    warehouse = Warehouse(loaded.warehouse, "sandbox", memory_mb=500)
    watches = watches_of(loaded, list(rules.STRATEGIES), list(rules.SCREENS))
    with warehouse.read() as connection:
        kept = signals_after(connection, limit=10**9)
        found = compare(connection, watches, int(loaded.clock()))
        reach = min(one.covered[1] for one in standings(connection).values() if one.covered)
    journal = Journal(home / "signals")
    told = written(journal)
    table = Counter(one.id for one in kept)
    wrong = [str(one) for one in found.differences]
    wrong += [f"{(told - table).total()} lost between journal and table"] if told - table else []
    wrong += [f"{(table - told).total()} in the table only"] if table - told else []
    wrong += [f"{count} times in the table: {name}" for name, count in table.items() if count > 1]
    unsent = set(table) - set(hook.keys)
    wrong += [f"the webhook never got {len(unsent)} of {len(table)}"] if unsent else []
    wrong += [f"{hook.unsigned} bodies were not signed"] if hook.unsigned else []
    wrong += [f"{journal.broken} lines of the journal are broken"] if journal.broken else []
    open_ = sum(one.what == MISSING for one in found.open)
    if len(standing(one for one in kept if one.opened_at < reach)) + open_ < found.signals and not wrong:
        wrong.append("fewer signals than the candles give")
    return wrong, found, kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--speed", type=float, default=60, help="of the clock (%(default)s): a bar of 1m closes every second")
    wanted = parser.parse_args()
    dice = random.Random(wanted.seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, serving(random.Random(wanted.seed)) as hook:
        home = Path(folder) / "home"
        settings = given(home, wanted.speed, hook)
        for command in ("collect", "calculate"):
            ran(mdms(command, given=settings))
        seconds = [finish(settings, Path(folder), hook) for _ in range(2)][-1]  # the first may have to compile
        late = sum(strike(settings, dice.uniform(0, LIFE * seconds), Path(folder)) for _ in range(wanted.kills))
        finish(settings, Path(folder), hook)
        wrong, found, kept = judged(home, settings, hook)
    revised = sum(one.revision > 0 for one in kept)
    again = sum(count > 1 for count in hook.keys.values())
    print(f"seed {wanted.seed}: {wanted.kills} kills, {late} of them after bars were judged (first after {seconds:.1f} s)")
    print(f"{len(kept)} signals in the table, {revised} of them revisions; {found.said}")
    print(f"the webhook got {again} of them more than once")
    print("\n".join(wrong[:20]) or "nothing lost, nothing twice")
    return 1 if wrong or not found.signals else 0


if __name__ == "__main__":
    sys.exit(main())
