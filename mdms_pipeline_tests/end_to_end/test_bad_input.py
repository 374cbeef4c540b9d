"""Whatever a user gets wrong: one clear message on stderr, a status that is not 0, no traceback, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdms_pipeline.store import Warehouse
from mdms_pipeline_tests.end_to_end.conftest import Ran
from mdms_pipeline_tests.support import HOUR, NOW, Said, bits, environment, mdms

NOBODY = 65534  # a user who owns nothing; where the tests are not run by root, they are run by such a one already


def is_clear(said: Said, *words: str, code: int = 1) -> None:
    """The message holds all of these words, and is no traceback."""
    assert said.code == code, said
    assert "Traceback" not in said.err + said.out
    for word in words:
        assert word in said.err, said.err
    assert len(said.err) < 600, said.err


SETTINGS = [
    ("MDMS_TIMEFRAMES", "1h,7m", ["'7m'", "1m, 3m, 5m"]),
    ("MDMS_TIMEFRAMES", ",", ["at least one of"]),
    ("MDMS_SYMBOLS", "KRW-BTC,BTC", ["'BTC'", "write it like KRW-BTC"]),
    ("MDMS_SYMBOLS", "krw-btc", ["'krw-btc'", "write it like KRW-BTC"]),
    ("MDMS_SYMBOLS", "USDT-BTC", ["'USDT-BTC'"]),
    ("MDMS_SYMBOLS", "top:", ["'top:'", "top:120"]),
    ("MDMS_SYMBOLS", "top:-3", ["'top:-3'", "top:120"]),
    ("MDMS_HISTORY", "0", ["'0'", ">= 1"]),
    ("MDMS_HISTORY", "many", ["'many'", "whole number"]),
    ("MDMS_MEMORY_MB", "50", ["'50'", ">= 200"]),
    ("MDMS_EXCHANGE_URL", "api.upbit.com", ["'api.upbit.com'", "https://api.upbit.com", "sandbox"]),
    ("MDMS_EXTENSIONS", "/no/such/folder", ["'/no/such/folder'", "make it"]),
]


@pytest.mark.parametrize(("name", "value", "words"), SETTINGS, ids=[f"{name}={value}" for name, value, _ in SETTINGS])
def test_a_setting_that_cannot_be(home: Path, name: str, value: str, words: list[str]) -> None:
    is_clear(mdms("run", given=environment(home, **{name: value, **({"MDMS_CLOCK": ""} if "URL" in name else {})})), name, *words)
    assert not home.exists()


ASKED = [
    (["why", "KRW-BTX", "volatility_squeeze"], ["'KRW-BTX'", "KRW-BTC"]),
    (["why", "KRW-BTC", "volatility_squeze"], ["'volatility_squeze'", "volatility_squeeze"]),
    (["screen", "breakout"], ["'breakout'", "breakout_on_volume"]),
    (["collect", "--timeframe", "7m"], ["'7m'", "1m, 3m, 5m"]),
    (["collect", "--timeframe", "1d"], ["'1d' is not kept", "MDMS_TIMEFRAMES"]),
    (["collect", "--symbol", "KRW-SOL"], ["'KRW-SOL' is not collected", "MDMS_SYMBOLS"]),
    (["calculate", "--symbol", "KRW-BTX"], ["'KRW-BTX'", "KRW-BTC"]),
    (["plan", "rsj(14)"], ["rsj", "rsi"]),
    (["plan", "rsi(0)"], ["rsi", "got 0", "^"]),
    (["plan", "rsi(14"], ["rsi(14", "^"]),
    (["plan", "close"], ["close", "is a candle column", "rsi(14)"]),
]


@pytest.mark.parametrize(("arguments", "words"), ASKED, ids=[" ".join(arguments) for arguments, _ in ASKED])
def test_what_is_asked_for_does_not_exist(first_run: Ran, arguments: list[str], words: list[str]) -> None:
    is_clear(mdms(*arguments, given=environment(first_run.home)), *words)


def test_wrong_usage(home: Path) -> None:
    is_clear(mdms("runn", given=environment(home)), "No such command 'runn'", code=2)
    is_clear(mdms("run", "--plann", given=environment(home)), "--plann", code=2)
    is_clear(mdms("why", "KRW-BTC", given=environment(home)), "SCREEN", code=2)


def test_a_symbol_that_the_exchange_does_not_have(ran: Path) -> None:
    before = bits(opened(ran))
    for command in ("run", "collect"):
        said = mdms(command, given=environment(ran, NOW + HOUR, MDMS_SYMBOLS="KRW-BTC,KRW-BTX"))
        is_clear(said, "'KRW-BTX'", "MDMS_SYMBOLS", "did you mean KRW-")
    assert bits(opened(ran)) == before


def opened(home: Path) -> Warehouse:
    return Warehouse(home / "mdms.duckdb", "sandbox", memory_mb=200)


BROKEN_SCREEN = "title: Mine\ntimeframe: 1h\nwhere:\n  - close > smaa(20)\nrank: {expression: close, direction: desc}\n"


def test_a_rule_with_a_typo(ran: Path, tmp_path: Path) -> None:
    """The file is named, the place is shown, and the other screens go on."""
    (tmp_path / "more" / "screens").mkdir(parents=True)
    (tmp_path / "more" / "screens" / "mine.yaml").write_text(BROKEN_SCREEN)
    given = environment(ran, MDMS_EXTENSIONS=str(tmp_path / "more"))
    for arguments in (["run"], ["screen"], ["screen", "mine"], ["why", "KRW-BTC", "mine"]):
        said = mdms(*arguments, given=given)
        is_clear(said, "mine.yaml", "smaa", "sma", "^")
    assert "volatility_squeeze" in mdms("screen", given=given).out


def test_an_extension_that_does_not_load(ran: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "indicators").mkdir(parents=True)
    (tmp_path / "more" / "indicators" / "mine.py").write_text("import nothing_of_this_name\n")
    is_clear(mdms("run", given=environment(ran, MDMS_EXTENSIONS=str(tmp_path / "more"))), "mine.py", "nothing_of_this_name")


def test_a_warehouse_of_another_exchange(ran: Path) -> None:
    before = bits(opened(ran))
    for command in (["run"], ["collect"], ["calculate"], ["screen"], ["status"], ["plan"]):
        said = mdms(*command, given=environment(ran, MDMS_EXCHANGE_URL="http://127.0.0.1:9", MDMS_CLOCK=""))
        is_clear(said, "holds candles of sandbox", "http://127.0.0.1:9", "MDMS_HOME")
    assert bits(opened(ran)) == before


def test_an_exchange_that_is_down(home: Path) -> None:
    said = mdms("run", given=environment(home, MDMS_EXCHANGE_URL="http://127.0.0.1:9", MDMS_CLOCK=""))
    is_clear(said, "http://127.0.0.1:9", "cannot be reached")


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    for home in (Path("/proc/mdms"), Path("/dev/null/mdms")):
        for command in ("run", "status"):
            is_clear(mdms(command, given=environment(home)), "MDMS_HOME", str(home), "cannot be written")


def test_a_home_whose_dagster_folder_cannot_be_made(home: Path) -> None:
    home.mkdir()
    (home / "dagster").write_text("a file in the way")
    is_clear(mdms("run", given=environment(home)), str(home / "dagster"))


def test_a_home_of_somebody_else(ran: Path) -> None:
    """Which may be read, but not written."""
    before = bits(opened(ran))
    for path in [*ran.rglob("*"), ran]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in list(ran.parents)[:-2]:
        parent.chmod(0o755)
    is_clear(mdms("run", given=environment(ran, NOW + HOUR), user=NOBODY), "MDMS_HOME", "cannot be written")
    ran.chmod(0o755)
    assert bits(opened(ran)) == before
