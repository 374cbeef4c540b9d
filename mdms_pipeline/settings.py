"""Every setting, typed, from the environment. The README's table and `mdms --help` are held to this file by tests."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mdms_pipeline.market import TIMEFRAMES, Instant, check_symbol, instant, timeframe

SANDBOX = "sandbox"
UPBIT = "https://api.upbit.com"
NO_TRADE = ("skip", "flat")
SECRETS = ("MDMS_SIGNAL_SECRET",)  # never shown
LEAST_SECRET = 16  # characters


class SettingError(ValueError):
    """A setting that cannot be: the message names it, its value and the remedy."""


# name -> (default, meaning)
SETTINGS: dict[str, tuple[str, str]] = {
    "MDMS_HOME": (".mdms", "folder of the warehouse `mdms.duckdb` and of Dagster's home"),
    "MDMS_EXCHANGE_URL": (UPBIT, "the exchange; `sandbox` is the embedded one"),
    "MDMS_TIMEFRAMES": ("1d,4h,1h", f"timeframes kept, out of {' '.join(TIMEFRAMES)}"),
    "MDMS_SYMBOLS": ("top:120", "a list such as `KRW-BTC,KRW-ETH`, or `top:N` by 24 h turnover"),
    "MDMS_HISTORY": ("1000", "candles per symbol and timeframe"),
    "MDMS_NO_TRADE": ("skip", "what indicators see of a slot without a trade: `skip` nothing, `flat` the previous close; for good"),
    "MDMS_MEMORY_MB": ("500", "memory that chunks, caches and DuckDB may take, in MB (200 at the least)"),
    "MDMS_EXTENSIONS": ("", "folder with `indicators/*.py`, `screens/*.yaml` and `strategies/*.yaml` of your own"),
    "MDMS_ALERT_URL": ("", "where alerts are POSTed as JSON, besides the file `alerts.jsonl` in MDMS_HOME"),
    "MDMS_SIGNAL_URL": ("", "where `mdms live` POSTs each signal as JSON, signed; several addresses by spaces"),
    "MDMS_SIGNAL_SECRET": ("", "what these POSTs are signed with: at least 16 characters, known to the receiver"),
    "MDMS_SIGNAL_SYNC": ("no", "`yes`: a signal is on the disk, not only in the system's cache, before it is told"),
    "MDMS_LOG_MB": ("400", "disk that Dagster's log may take before `mdms prune` forgets old runs, in MB (100 at the least)"),
    "MDMS_CLOCK": ("", "simulations on the sandbox only: `10x@2026-11-20T09:00@1795000000` is ten times as fast, 09:00 at that instant"),
}


@dataclass(frozen=True)
class Settings:
    home: Path
    exchange_url: str
    timeframes: tuple[str, ...]  # finest first
    symbols: tuple[str, ...]  # empty: the `top` by turnover
    top: int
    history: int
    memory_mb: int
    extensions: Path | None
    no_trade: str = "skip"
    alert_url: str = ""
    signal_urls: tuple[str, ...] = ()
    signal_secret: str = field(default="", repr=False)
    signal_sync: bool = False
    log_mb: int = 400
    clock: Callable[[], float] = time.time  # s UTC; another one in simulations only

    @property
    def universe(self) -> str:
        """The setting MDMS_SYMBOLS in its normal form."""
        return ",".join(self.symbols) or f"top:{self.top}"

    @property
    def warehouse(self) -> Path:
        return self.home / "mdms.duckdb"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    @property
    def alerts(self) -> Path:
        return self.home / "alerts.jsonl"

    @property
    def signals(self) -> Path:
        return self.home / "signals"

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from `environment` (the process's own when None). Raises SettingError."""
        given = os.environ if environment is None else environment
        text = {name: given.get(name, "").strip() or default for name, (default, _) in SETTINGS.items()}
        symbols, top = _symbols(text["MDMS_SYMBOLS"])
        return cls(
            home=Path(text["MDMS_HOME"]).expanduser().absolute(),
            exchange_url=_url(text["MDMS_EXCHANGE_URL"]),
            timeframes=_timeframes(text["MDMS_TIMEFRAMES"]),
            symbols=symbols,
            top=top,
            history=_whole("MDMS_HISTORY", text["MDMS_HISTORY"], 1),
            memory_mb=_whole("MDMS_MEMORY_MB", text["MDMS_MEMORY_MB"], 200),
            extensions=_folder("MDMS_EXTENSIONS", text["MDMS_EXTENSIONS"]),
            no_trade=_word("MDMS_NO_TRADE", text["MDMS_NO_TRADE"], NO_TRADE),
            alert_url=_alert_url(text["MDMS_ALERT_URL"]),
            signal_urls=_signal_urls(text["MDMS_SIGNAL_URL"]),
            signal_secret=_signal_secret(text["MDMS_SIGNAL_SECRET"], text["MDMS_SIGNAL_URL"]),
            signal_sync=_word("MDMS_SIGNAL_SYNC", text["MDMS_SIGNAL_SYNC"], ("no", "yes")) == "yes",
            log_mb=_whole("MDMS_LOG_MB", text["MDMS_LOG_MB"], 100),
            clock=_clock(text["MDMS_CLOCK"], text["MDMS_EXCHANGE_URL"]),
        )


def _whole(name: str, text: str, least: int) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise SettingError(f"{name}={text!r}: must be a whole number >= {least}, {SETTINGS[name][1]}")
    return int(text)


def _word(name: str, text: str, words: tuple[str, ...]) -> str:
    if text not in words:
        raise SettingError(f"{name}={text!r}: must be one of {', '.join(words)}: {SETTINGS[name][1]}")
    return text


def _url(text: str) -> str:
    if text != SANDBOX and not re.match(r"https?://[^/\s]+", text):
        raise SettingError(f"MDMS_EXCHANGE_URL={text!r}: must be an http(s) address such as {UPBIT}, or the word {SANDBOX}")
    return text.rstrip("/")


def _alert_url(text: str) -> str:
    return _address("MDMS_ALERT_URL", text) if text else text


def _address(name: str, text: str) -> str:
    if not re.match(r"https?://[^/\s]+", text):
        raise SettingError(f"{name}={text!r}: must be an http(s) address, or left out")
    return text


def _signal_urls(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_address("MDMS_SIGNAL_URL", part) for part in text.split()))


def _signal_secret(text: str, urls: str) -> str:
    if len(text) < LEAST_SECRET and (text or urls):
        raise SettingError(
            f"MDMS_SIGNAL_SECRET: has {len(text)} characters, but signals are only sent signed: give it {LEAST_SECRET} or more, "
            "such as `openssl rand -hex 32` makes, or leave MDMS_SIGNAL_URL out"
        )
    return text


@dataclass(frozen=True)
class FastClock:
    """Market time that runs `speed` times as fast as ours and shows `start` at our instant `anchor`: the same in every process."""

    speed: float
    start: Instant
    anchor: float

    def __call__(self) -> float:
        return self.start + self.speed * (time.time() - self.anchor)


def _clock(text: str, exchange_url: str) -> Callable[[], float]:
    if not text:
        return time.time
    if exchange_url != SANDBOX and not re.match(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/|$)", exchange_url):
        raise SettingError(f"MDMS_CLOCK={text!r}: is for a sandbox on this machine, not for MDMS_EXCHANGE_URL={exchange_url}: leave it out")
    try:
        speed, start, anchor = text.split("@")
        clock = FastClock(float(speed.removesuffix("x")), instant(start), float(anchor))
    except ValueError:
        clock = FastClock(0, 0, 0)
    if not clock.speed > 0:
        raise SettingError(f"MDMS_CLOCK={text!r}: write <speed>x@<start>@<instant>, such as 10x@2026-11-20T09:00@1795000000")
    return clock


def _timeframes(text: str) -> tuple[str, ...]:
    names = {name.strip() for name in text.split(",") if name.strip()}
    try:
        known = [timeframe(name).name for name in names]
    except ValueError as error:
        raise SettingError(f"MDMS_TIMEFRAMES={text!r}: {error}") from None
    if not known:
        raise SettingError(f"MDMS_TIMEFRAMES={text!r}: name at least one of {', '.join(TIMEFRAMES)}")
    return tuple(sorted(known, key=list(TIMEFRAMES).index))


def _symbols(text: str) -> tuple[tuple[str, ...], int]:
    if text.startswith("top:"):
        if not re.fullmatch(r"top:[1-9]\d*", text):
            raise SettingError(f"MDMS_SYMBOLS={text!r}: write top:N with a whole number N >= 1, for example top:120")
        return (), int(text[4:])
    try:
        symbols = tuple(dict.fromkeys(check_symbol(part.strip()) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise SettingError(f"MDMS_SYMBOLS={text!r}: {error}, or top:120") from None
    if not symbols:
        raise SettingError(f"MDMS_SYMBOLS={text!r}: name at least one market such as KRW-BTC, or top:120")
    return symbols, 0


def _folder(name: str, text: str) -> Path | None:
    if not text:
        return None
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise SettingError(f"{name}={text!r}: there is no such folder: make it, or leave the setting out")
    return folder
