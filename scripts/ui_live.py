"""Look at live signals in Dagster's UI: `mdms live` and `mdms dev` over the sandbox, pictures by headless Chromium.

    .venv/bin/python scripts/ui_live.py --shots .tmp/ui_live

1. candles of some sandbox markets are collected and calculated; rules that turn often stand on 1m; the clock runs `--speed` as fast
2. `mdms live` and `mdms dev` run beside each other
3. waited for: the sensor `signals` reports what came into the table; its run of the check `live_parity` passes
4. pictures of the graph, the asset, its check and its sensor, for somebody to look at

Exit code 0: all of this went well. 1: the message says what did not. Needs what scripts/ui.py needs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mdms_pipeline_tests.live import rules
from scripts.ui import ROOT, Broken, Browser, Dagster, browsing, ended, free_port, running, shown, until

SYMBOLS = "KRW-BTC,KRW-ETH,KRW-XRP,KRW-DOGE,KRW-ADA,KRW-SOL,KRW-USDT,KRW-TRX"
MDMS = str(Path(sys.executable).parent / "mdms")
REPORTED = """query Reported($key: AssetKeyInput!) {assetOrError(assetKey: $key) {... on Asset {assetObservations(limit: 20) {
    timestamp runId metadataEntries {label __typename ... on IntMetadataEntry {intValue} ... on MarkdownMetadataEntry {mdStr}}}}}}"""
CHECKED = """query Checked($key: AssetKeyInput!) {assetCheckExecutions(assetKey: $key, checkName: "live_parity", limit: 5) {
    status runId evaluation {success description severity}}}"""


def settings(home: Path, speed: float) -> dict[str, str]:
    """The settings of every process."""
    rules.settings(home, "1m")
    for file in (home / "own").rglob("*.yaml"):
        text = file.read_text().replace("KRW-AAA, KRW-CCC", "KRW-BTC, KRW-XRP").replace("KRW-BBB, KRW-CCC", "KRW-ETH, KRW-ADA")
        file.write_text(text)
    return os.environ | {
        "MDMS_HOME": str(home), "MDMS_EXCHANGE_URL": "sandbox", "MDMS_SYMBOLS": SYMBOLS, "MDMS_TIMEFRAMES": "1m", "MDMS_HISTORY": "300",
        "MDMS_EXTENSIONS": str(home / "own"), "MDMS_CLOCK": f"{speed}x@2026-11-20T09:00@{time.time():.0f}",
    }  # fmt: skip


def prepare(environment: dict[str, str]) -> None:
    for command in ("collect", "calculate"):
        done = subprocess.run([MDMS, command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"mdms {command}: {done.stderr}")


def reported(dagster: Dagster) -> list[dict[str, Any]]:
    """What the asset's observations tell, newest first."""
    found = dagster.ask(REPORTED, key={"path": ["signals"]})["assetOrError"].get("assetObservations", [])
    return [{entry["label"]: entry.get("intValue", entry.get("mdStr")) for entry in one["metadataEntries"]} for one in found]


def checked(dagster: Dagster) -> dict[str, Any] | None:
    """The newest evaluation of the check that has compared anything, once there is one."""
    found = dagster.ask(CHECKED, key={"path": ["signals"]})["assetCheckExecutions"]
    verdicts = [dict(one["evaluation"]) for one in found if one["evaluation"]]
    return next((one for one in verdicts if not one["description"].startswith("0 signals")), None)


def take_pictures(browser: Browser, url: str, location: str, shots: Path) -> None:
    browser.size(1600, 1300)
    browser.open(f"{url}/assets/signals")
    browser.shows("Answers of strategies and screens")
    browser.shoot(shots / "asset.png")
    browser.open(f"{url}/assets/signals?view=events")
    browser.shows("slowest_emission_ms", "by_rule")
    browser.shoot(shots / "events.png")
    browser.click("[Show Markdown]")
    browser.shows("Copy")
    browser.shoot(shots / "table.png")
    browser.open(f"{url}/assets/signals?view=checks")
    browser.shows("live_parity")
    browser.shoot(shots / "check.png")
    browser.open(f"{url}/assets/signals?view=lineage")
    browser.shows("bollinger", "candles")
    browser.shoot(shots / "lineage.png")
    browser.open(f"{url}/locations/{location}/sensors/signals")
    browser.shows("Reports live signals")
    browser.shoot(shots / "sensor.png")
    browser.size(2000, 1500)
    browser.open(f"{url}/assets/signals?view=lineage&lineageScope=upstream&lineageDepth=5")
    browser.shows("symbols", "stddev", "live")
    browser.shoot(shots / "graph.png")


def show(given: argparse.Namespace, home: Path) -> None:
    environment = settings(home, given.speed)
    prepare(environment)
    ui = free_port()
    with (
        running([MDMS, "live", "--json"], given.shots / "mdms_live.log", environment),
        running([MDMS, "dev", "--port", str(ui)], given.shots / "mdms_dev.log", environment) as process,
    ):
        dagster = Dagster(ui)
        repository = until("Dagster's UI", lambda: dagster.repository() if process.poll() is None else ended(process), 180)
        first = until("signals in Dagster", lambda: reported(dagster) or None, given.patience)
        print(f"reported: {sum(one['signals'] for one in first)} signals in {len(first)} observations")
        verdict = until("the check live_parity", lambda: checked(dagster), given.patience)
        print(f"live_parity: {verdict['description']}")
        if not verdict["success"]:
            raise Broken(f"live_parity failed: {verdict}")
        with browsing(home, given.shots) as browser:
            take_pictures(browser, dagster.url, repository["location"]["name"], given.shots)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=Path, default=ROOT / ".tmp/ui_live", help="folder for the screenshots and logs (%(default)s)")
    parser.add_argument("--speed", type=float, default=6, help="of the clock (%(default)s): a bar of 1m closes every 10 s")
    parser.add_argument("--patience", type=float, default=180, help="seconds to wait for what must come (%(default)s)")
    return shown(parser.parse_args(), show)


if __name__ == "__main__":
    sys.exit(main())
