"""Drive Dagster's UI over the sandbox exchange in headless Chromium, and take screenshots for somebody to look at.

    .venv/bin/python scripts/ui.py --shots .tmp/ui

1. `mdms dev` is started in a temporary home, as a user starts it
2. one symbol and timeframe is materialized, then all of them, by the GraphQL that the UI itself sends
3. the sensor `refresh` is waited for: when a candle has closed it must make exactly one run, and that run must succeed
4. one backtest is materialized by hand; the sensor `backtests` has made another after the refresh
5. Chromium takes the pictures. Needs the Debian packages chromium and chromium-driver; speaks WebDriver to it and downloads nothing

Exit code 0: all of this went well. 1: the message says what did not.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")
Repository = dict[str, Any]  # of GraphQL
ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1600,1100",
)  # fmt: skip
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class Broken(Exception):
    """What was to be shown could not be."""


# ---- processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its children in a group of their own; it is asked to end, then made to."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=interruptible
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def interruptible() -> None:
    """A process that is started in the background of a script inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(what: str, look: Callable[[], T | None], seconds: float, every: float = 0.5) -> T:
    """What `look` finds, asked again until it finds something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found is not None:
            return found
        time.sleep(every)
    raise Broken(f"waited {seconds:.0f} s in vain for {what}")


# ---- Dagster, by the GraphQL that its UI sends


class Dagster:
    """One webserver."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=120)

    def ask(self, query: str, **variables: Any) -> Any:
        answer = self.http.post("/graphql", json={"query": query, "variables": variables}).json()
        if "errors" in answer:
            raise Broken(f"GraphQL: {answer['errors']}")
        return answer["data"]

    def repository(self) -> Repository | None:
        """The one repository; None while it is not loaded."""
        try:
            found = self.ask(
                """{repositoriesOrError {__typename ... on RepositoryConnection {nodes {
                     name location {name} schedules {name scheduleState {status}} sensors {name sensorState {status}}}}}}"""
            )["repositoriesOrError"]
        except httpx.TransportError:
            return None
        nodes = found.get("nodes")
        return dict(nodes[0]) if nodes else None

    def launch(self, repository: Repository, job: str, assets: Sequence[str], tags: dict[str, str]) -> str:
        """Launch a run as the UI's materialize button does; its id."""
        mutation = """mutation Launch($params: ExecutionParams!) {launchPipelineExecution(executionParams: $params) {
            __typename ... on LaunchRunSuccess {run {id}} ... on PythonError {message}
            ... on InvalidSubsetError {message} ... on RunConfigValidationInvalid {errors {message}}}}"""
        selector = {
            "repositoryName": repository["name"],
            "repositoryLocationName": repository["location"]["name"],
            "pipelineName": job,
            "assetSelection": [{"path": [name]} for name in assets],
            "assetCheckSelection": [],
        }
        params = {
            "mode": "default",
            "runConfigData": "{}",
            "selector": selector,
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        answer = self.ask(mutation, params=params)["launchPipelineExecution"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise Broken(f"{job} {tags} could not be launched: {answer}")
        return str(answer["run"]["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        query = """query Run($id: ID!) {runOrError(runId: $id) {... on Run {
            id status startTime endTime stats {... on RunStatsSnapshot {stepsSucceeded materializations}}}}}"""
        return dict(self.ask(query, id=run_id)["runOrError"])

    def wait(self, run_id: str, seconds: float) -> dict[str, Any]:
        """The run once it has succeeded."""
        run = until(f"the end of run {run_id}", lambda: run if (run := self.run(run_id))["status"] in ENDED else None, seconds)
        if run["status"] != "SUCCESS":
            raise Broken(f"run {run_id} ended as {run['status']}")
        return run

    def ticks(self, repository: Repository, sensor: str) -> list[dict[str, Any]]:
        """The ticks of a sensor that made a run or failed, newest first."""
        query = """query Ticks($sensor: SensorSelector!) {sensorOrError(sensorSelector: $sensor) {... on Sensor {
            sensorState {ticks(limit: 20, statuses: [SUCCESS, FAILURE]) {status runIds timestamp error {message}}}}}}"""
        place = {"repositoryName": repository["name"], "repositoryLocationName": repository["location"]["name"], "sensorName": sensor}
        return list(self.ask(query, sensor=place)["sensorOrError"]["sensorState"]["ticks"])

    def grid(self, asset: str) -> tuple[dict[str, list[str]], dict[str, int]]:
        """The keys of each partition dimension of an asset, and how many partitions are materialized, missing and failed."""
        query = """query Grid($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key) {... on AssetNode {
            partitionKeysByDimension {name partitionKeys} partitionStats {numMaterialized numPartitions numFailed}}}}"""
        node = self.ask(query, key={"path": [asset]})["assetNodeOrError"]
        return {dimension["name"]: dimension["partitionKeys"] for dimension in node["partitionKeysByDimension"]}, node["partitionStats"]


# ---- Chromium, by WebDriver


class Browser:
    """One window. `run` is JavaScript in the page."""

    def __init__(self, driver: str, profile: Path) -> None:
        self.http = httpx.Client(base_url=driver, timeout=120)
        options = {"binary": shutil.which("chromium"), "args": [*CHROMIUM, f"--user-data-dir={profile}"]}
        capabilities = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.session = f"/session/{self.send('/session', capabilities)['sessionId']}"

    def send(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST a command with its arguments, or GET one that has none."""
        answer = (self.http.get(path) if body is None else self.http.post(path, json=body)).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise Broken(f"{path}: {answer['error']}: {answer['message'].splitlines()[0]}")
        return answer

    def open(self, url: str) -> None:
        self.send(f"{self.session}/url", {"url": url})

    def size(self, width: int, height: int) -> None:
        self.send(f"{self.session}/window/rect", {"width": width, "height": height})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.send(f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def shows(self, *texts: str, seconds: float = 60) -> None:
        """Wait until the page shows all these texts, and for what is drawn after them."""
        script = "return arguments[0].every(text => document.body.innerText.includes(text)) || null"
        until(f"{', '.join(texts)} on the page", lambda: self.run(script, texts), seconds)
        time.sleep(3)

    def click(self, text: str) -> None:
        """Click the last element whose own text is `text`."""
        script = """const found = [...document.querySelectorAll('*')].findLast(
                        element => element.childElementCount === 0 && element.textContent.trim() === arguments[0]);
                    if (!found) return null; found.scrollIntoView({block: 'center'}); found.click(); return true"""
        until(f"something to click that says {text!r}", lambda: self.run(script, text), 30)

    def press(self, code: str) -> None:
        """Alt with a key such as KeyE."""
        self.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {code: arguments[0], altKey: true, bubbles: true}))", code)

    def shoot(self, file: Path) -> None:
        def take() -> str | None:
            with suppress(Broken):  # a busy machine may be late with a picture
                return str(self.send(f"{self.session}/screenshot"))
            return None

        file.write_bytes(base64.b64decode(until(f"the screenshot {file.name}", take, 120)))
        print(f"  {file}")

    def close(self) -> None:
        self.http.delete(self.session)


# ---- what is shown


def materialize_one(dagster: Dagster, repository: Repository) -> None:
    """rsi of one symbol and timeframe, with what it reads."""
    run_id = dagster.launch(repository, "__ASSET_JOB", ["candles", "sma", "rsi"], {"dagster/partition": "KRW-BTC|1h"})
    run = dagster.wait(run_id, 120)
    _, filled = dagster.grid("rsi")
    print(f"one symbol and timeframe: {lasted(run)}; rsi: {filled['numMaterialized']} of {filled['numPartitions']} partitions")


def materialize_all(dagster: Dagster, repository: Repository, timeframes: Sequence[str]) -> None:
    """The whole job over every symbol of neighbouring timeframes."""
    keys, _ = dagster.grid("candles")
    symbols, first, last = keys["symbol"], timeframes[0], timeframes[-1]
    tags = {RANGE[0]: f"{symbols[0]}|{first}", RANGE[1]: f"{symbols[-1]}|{last}"}
    run = dagster.wait(dagster.launch(repository, "refresh", [], tags), 300)
    print(f"{len(symbols)} symbols, {first} to {last}: {lasted(run)}, {run['stats']['materializations']} materializations")


def tick(dagster: Dagster, repository: Repository, since: float, seconds: float) -> None:
    """The next tick that asks for a run asks for one, and that one succeeds."""

    def look() -> dict[str, Any] | None:
        later = [tick for tick in dagster.ticks(repository, "refresh") if tick["timestamp"] > since and (tick["runIds"] or tick["error"])]
        return later[-1] if later else None

    found = until("a tick of the sensor refresh that makes a run", look, seconds)
    if found["status"] != "SUCCESS" or len(found["runIds"]) != 1:
        raise Broken(f"tick of refresh: {found}")
    print(f"a candle has closed: one tick, one run; {lasted(dagster.wait(found['runIds'][0], 180))}")


def backtests(dagster: Dagster, repository: Repository) -> None:
    """One by hand; another was made by the sensor once the refresh had ended."""
    run = dagster.wait(dagster.launch(repository, "__ASSET_JOB", ["backtest_pullback"], {}), 180)

    def look() -> dict[str, Any] | None:
        return next((tick for tick in dagster.ticks(repository, "backtests") if tick["runIds"]), None)

    made = until("a tick of the sensor backtests that makes a run", look, 120)
    print(f"backtest by hand: {lasted(run)}; by the sensor: {lasted(dagster.wait(made['runIds'][0], 180))}")


def all_on(repository: Repository) -> None:
    """Every sensor and schedule is running without anybody's help."""
    states = {sensor["name"]: sensor["sensorState"]["status"] for sensor in repository["sensors"]}
    states |= {schedule["name"]: schedule["scheduleState"]["status"] for schedule in repository["schedules"]}
    if "refresh" not in states or set(states.values()) != {"RUNNING"}:
        raise Broken(f"sensors and schedules: {states}")
    print(f"running: {', '.join(states)}")


def lasted(run: dict[str, Any]) -> str:
    return f"run {run['id'][:8]} succeeded in {run['endTime'] - run['startTime']:.1f} s"


def take_pictures(browser: Browser, url: str, location: str, shots: Path) -> None:
    rankings = {"breakout_on_volume": "1d", "pullback_in_uptrend": "4h", "volatility_squeeze": "1h"}
    browser.size(1600, 1900)
    browser.open(f"{url}/asset-groups")
    browser.shows("calculate")
    browser.press("KeyE")  # expand all groups
    browser.shows("screen_results", "bollinger")
    browser.open(browser.run("return location.href"))  # which names the expanded groups: drawn to fit
    browser.shows("screen_results", "bollinger")
    browser.shoot(shots / "asset_graph.png")
    browser.size(1600, 1100)
    browser.open(f"{url}/assets/rsi?view=partitions&partition=KRW-BTC%7C1h")
    browser.shows("KRW-BTC", "rows_written", "newest")
    browser.shoot(shots / "partitions.png")
    browser.open(f"{url}/assets/rsi")
    browser.shows("Relative Strength Index", "rsi_14")
    browser.shoot(shots / "indicator.png")
    browser.open(f"{url}/assets/candles?view=checks")
    browser.shows("fresh", "unique")
    browser.shoot(shots / "checks.png")
    browser.open(f"{url}/assets/backtest_trend_following?view=checks")
    browser.shows("look_ahead", "warm_up", "Passed")
    browser.shoot(shots / "backtest_checks.png")
    for name in (*rankings, "backtest_pullback"):
        browser.open(f"{url}/assets/{name}?view=events")
        browser.shows("picture")
        browser.shoot(shots / f"{name}.png")
        browser.click("[Show Markdown]")
        browser.shows("Copy")
        until("the picture", lambda: browser.run(DRAWN), 30)
        browser.shoot(shots / f"{name}_picture.png")
    browser.open(f"{url}/locations/{location}/sensors/refresh")
    browser.shows("Makes one run over all that is due")
    browser.shoot(shots / "sensor.png")
    browser.open(f"{url}/automation")
    browser.shows("refresh", "listings")
    browser.shoot(shots / "automation.png")
    browser.open(f"{url}/runs")
    browser.shows("refresh", "Success")
    browser.shoot(shots / "runs.png")


# Whether an embedded picture has been decoded to pixels.
DRAWN = "return [...document.images].some(image => image.src.startsWith('data:image/png') && image.naturalWidth > 100) || null"


def show(given: argparse.Namespace, home: Path) -> None:
    environment = os.environ | {
        "MDMS_HOME": str(home), "MDMS_EXCHANGE_URL": "sandbox", "MDMS_HISTORY": "600", "MDMS_SYMBOLS": given.symbols,
        "MDMS_TIMEFRAMES": given.timeframes,
    }  # fmt: skip
    ui = free_port()
    mdms = [str(Path(sys.executable).parent / "mdms"), "dev", "--port", str(ui)]
    with running(mdms, given.shots / "mdms_dev.log", environment) as process:
        dagster = Dagster(ui)
        repository = until("Dagster's UI", lambda: dagster.repository() if process.poll() is None else ended(process), 120)
        all_on(repository)
        materialize_one(dagster, repository)
        materialize_all(dagster, repository, ["1h", "4h", "1d"])
        if given.tick_within:
            tick(dagster, repository, time.time(), given.tick_within)
            backtests(dagster, repository)
        with browsing(home, given.shots) as browser:
            take_pictures(browser, dagster.url, repository["location"]["name"], given.shots)


@contextmanager
def browsing(home: Path, shots: Path) -> Iterator[Browser]:
    """Chromium, as long as the block lasts; where something is not as it should be, the page is kept as broken.png."""
    port = free_port()
    with running(["chromedriver", f"--port={port}"], shots / "chromedriver.log", dict(os.environ)):
        address = f"http://127.0.0.1:{port}"
        until("chromedriver", lambda: answers(f"{address}/status"), 30)
        browser = Browser(address, home / "chromium")
        try:
            yield browser
        except Broken:
            browser.shoot(shots / "broken.png")
            raise
        finally:
            browser.close()


def shown(given: argparse.Namespace, show: Callable[[argparse.Namespace, Path], None]) -> int:
    """The exit code of showing it in a home of its own."""
    given.shots.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            show(given, Path(home))
    except (Broken, httpx.HTTPError) as error:
        print(f"{Path(sys.argv[0]).stem}: {error or type(error).__name__}; see {given.shots}", file=sys.stderr)
        return 1
    return 0


def ended(process: subprocess.Popen[bytes]) -> None:
    raise Broken(f"{process.args!r} ended with status {process.returncode}")


def answers(url: str) -> bool | None:
    try:
        return httpx.get(url).is_success or None
    except httpx.TransportError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=Path, default=ROOT / ".tmp/ui", help="folder for the screenshots and logs (%(default)s)")
    parser.add_argument("--symbols", default="top:12", help="MDMS_SYMBOLS (%(default)s)")
    parser.add_argument("--timeframes", default="1d,4h,1h,1m", help="MDMS_TIMEFRAMES; a candle of 1m closes every minute (%(default)s)")
    parser.add_argument("--tick-within", type=float, default=150, help="seconds to wait for a run of the sensor; 0: do not (%(default)s)")
    return shown(parser.parse_args(), show)


if __name__ == "__main__":
    sys.exit(main())
