"""Screen files: what they may say, and what is said of those that are wrong."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdms_pipeline.market import timeframe
from mdms_pipeline.marks import YamlError, read_yaml
from mdms_pipeline.screen import BUILT_IN, Screen, ScreenError, load_screen, load_screens
from mdms_pipeline.screen.load import Universe

from .words import GOOD, VOCABULARY, write

# Indicators that are stored without being asked for; a default screen may use no other.
STORED = {
    *(f"sma({n})" for n in (5, 10, 20, 60, 120, 200)), "sma(volume, 20)", *(f"ema({n})" for n in (12, 26, 50, 200)), "stddev(20)",
    *(f"{kind}({n})" for kind in ("highest", "lowest") for n in (14, 20, 55)), "rsi(14)", "atr(14)", "macd(12, 26, 9)",
    "bollinger(20, 2)", "stoch(14, 3, 3)",
}  # fmt: skip


def test_the_least_that_a_screen_says(tmp_path):
    screen = load_screen(write(tmp_path / "dips.yaml"), VOCABULARY)
    assert isinstance(screen, Screen)
    assert (screen.name, screen.title, screen.description) == ("dips", "A title", "")
    assert screen.timeframe is timeframe("4h")
    assert screen.universe == Universe()
    assert [str(rule) for rule in screen.where] == ["close > sma(20)"]
    assert (str(screen.rank), screen.descending) == ("rsi(14)", False)
    assert (screen.limit, screen.max_age, screen.columns) == (20, 1, ())
    assert list(map(str, screen.calls)) == ["sma(20)", "rsi(14)"]
    assert screen.series == ("close",)
    assert screen.lookback == 0


def test_all_that_a_screen_can_say(tmp_path):
    text = """
        name: dips
        title: A title
        description: Why.
        timeframe: 1M
        universe: {top: 30}
        where:
          - crosses_above(close, sma(20))
          - |
            volume > sma(volume, 20)   # a remark
              or volume[4] > 0
        rank: {expression: close / sma(20), direction: desc}
        limit: 1
        max_age: 0
        columns: [close, "close[2]"]
    """
    screen = load_screen(write(tmp_path / "dips.yaml", text), VOCABULARY)
    assert isinstance(screen, Screen)
    assert list(map(str, screen.where)) == ["crosses_above(close, sma(20))", "volume > sma(volume, 20) or volume[4] > 0"]
    assert screen.universe == Universe(top=30)
    assert (screen.descending, screen.limit, screen.max_age) == (True, 1, 0)
    assert list(map(str, screen.columns)) == ["close", "close[2]"]
    assert screen.series == ("close", "volume")
    assert screen.lookback == 4


def test_a_list_of_symbols(tmp_path):
    screen = load_screen(write(tmp_path / "dips.yaml", GOOD + "    universe: [KRW-BTC, KRW-ETH]\n"), VOCABULARY)
    assert isinstance(screen, Screen)
    assert screen.universe == Universe(symbols=("KRW-BTC", "KRW-ETH"))


def test_the_fingerprint_follows_what_decides(tmp_path):
    def fingerprint(text):
        screen = load_screen(write(tmp_path / "dips.yaml", text), VOCABULARY)
        assert isinstance(screen, Screen)
        return screen.fingerprint

    same = fingerprint(GOOD)
    assert fingerprint(GOOD.replace("A title", "Another").replace("sma(20)", "sma( close,20 )")) == same
    changes = (("sma(20)", "sma(60)"), ("asc", "desc"), ("4h", "1h"), ("rsi(14)", "close"))
    others = [fingerprint(GOOD.replace(*change)) for change in changes]
    others += [fingerprint(GOOD + f"    {line}\n") for line in ("limit: 3", "max_age: 3", "universe: {top: 3}", "columns: [close]")]
    assert len({same, *others}) == len(others) + 1


# (text added to or put in place of GOOD) -> line, field, value, words of the message
FAULTS = {
    "unknown key": (GOOD + "    tmeframe: 1h\n", 5, "tmeframe", "'1h'", "unknown key\ndid you mean timeframe?"),
    "unknown key in rank": (GOOD.replace("asc", "asc, expresion: 1"), 4, "rank.expresion", "1", "did you mean expression?"),
    "missing": (GOOD.replace("timeframe: 4h", ""), 1, "timeframe", "", "is missing\nwrite one of 1m"),
    "missing in rank": (GOOD.replace(", direction: asc", ""), 4, "rank.direction", "", "is missing\nwrite desc"),
    "timeframe": (GOOD.replace("4h", "4H"), 2, "timeframe", "'4H'", "timeframe '4H' is not known: use one of 1m"),
    "timeframe as a number": (GOOD.replace("4h", "4"), 2, "timeframe", "4", "valid string\nwrite one of"),
    "empty title": (GOOD.replace("A title", '""'), 1, "title", "''", "at least 1 character"),
    "text for a number": (GOOD + '    limit: "20"\n', 5, "limit", "'20'", "valid integer\nwrite the number of places"),
    "no places": (GOOD + "    limit: 0\n", 5, "limit", "0", "greater than or equal to 1"),
    "half an age": (GOOD + "    max_age: 0.5\n", 5, "max_age", "0.5", "valid integer"),
    "negative age": (GOOD + "    max_age: -1\n", 5, "max_age", "-1", "greater than or equal to 0"),
    "direction": (GOOD.replace("asc", "up"), 4, "rank.direction", "'up'", "write desc (the highest first)"),
    "rank as text": (GOOD.replace("{expression: rsi(14), direction: asc}", "rsi(14)"), 4, "rank", "'rsi(14)'", "write {expression"),
    "no clause": (GOOD.replace("close > sma(20)", "[]"), 3, "where", "[]", "at least 1 item"),
    "a number as clause": (GOOD.replace("close > sma(20)", "[5]"), 3, "where[0]", "5", "valid string"),
    "universe": (GOOD + "    universe: top 30\n", 5, "universe", "'top 30'", "names no universe\nwrite all, a list"),
    "universe of none": (GOOD + "    universe: []\n", 5, "universe", "[]", "names no universe"),
    "top 0": (GOOD + "    universe: {top: 0}\n", 5, "universe", "{'top': 0}", "names no universe"),
    "top true": (GOOD + "    universe: {top: true}\n", 5, "universe", "{'top': True}", "names no universe"),
    "top and more": (GOOD + "    universe: {top: 3, of: 4}\n", 5, "universe", "{'top': 3, 'of': 4}", "names no universe"),
    "symbol": (GOOD + "    universe: [KRW-BTC, BTC]\n", 5, "universe", "['KRW-BTC', 'BTC']", "'BTC' is not a KRW market code"),
    "symbol twice": (GOOD + "    universe: [KRW-BTC, KRW-BTC]\n", 5, "universe", "['KRW-BTC', 'KRW-BTC']", "stands here twice"),
    "name": (GOOD + "    name: other\n", 5, "name", "other", "not the file's name, dips"),
    "a key twice": (GOOD + "    title: again\n", 5, "", "", "the key 'title' is here for the second time"),
    "tabs": ("title: a\n\twhere: b\n", 2, "", "", "not YAML"),
    "open bracket": ("title: [a\nwhere: b\n", 2, "", "", "not YAML"),
    "a date that is none": ("title: 2026-13-45\n", 1, "", "", "not YAML: month must be in 1..12"),
    "a tag of python": ("title: !!python/object:os.system {}\n", 1, "", "", "not YAML: could not determine a constructor"),
    "itself": ("title: &a [*a]\n", 1, "", "", "not YAML"),
    "a list": ("- title\n", 1, "", "", "is not a screen"),
    "nothing": ("# to do\n", 1, "", "", "is not a screen"),
    "a number as key": (GOOD + "    5: 6\n", 5, "", "", "not YAML: a key must be a word, this is '5'"),
    "yes as key": (GOOD + "    yes: 6\n", 5, "", "", "a key must be a word, this is 'yes'"),
    "a list as key": (GOOD + "    ? [a]\n    : 6\n", 5, "", "", "a key must be a word"),
    "rule": (
        GOOD.replace("sma(20)", "smma(20)"),
        3, "where", "", "unknown indicator 'smma'\n  close > smma(20)\n          ^^^^\ndid you mean sma?",
    ),
    "rank rule": (GOOD.replace("rsi(14)", "rsi > 3"), 4, "rank.expression", "", "rsi is an indicator and must be called"),
    "rank is a condition": (GOOD.replace("rsi(14)", "rsi(14) > 3"), 4, "rank.expression", "", "a condition where a number is wanted"),
    "one clause is a number": (GOOD.replace("close > sma(20)", "[close, close > 1]"), 3, "where[0]", "", "a number where a condition"),
    "second clause": (
        GOOD.replace("close > sma(20)", "\n      - close > 1\n      -\n        close >\n        opne"),
        6, "where[1]", "", "close > opne\n          ^^^^",
    ),
    "line of a block": (
        GOOD.replace("close > sma(20)", "|\n        close > 1\n          and\n        opne > 1"),
        6, "where", "", "    and\n  opne > 1\n  ^^^^\n",
    ),
    "column": (GOOD + "    columns: [close, clse]\n", 5, "columns[1]", "", "did you mean close?"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_with_its_line_and_remedy(tmp_path, case):
    text, line, field, value, words = FAULTS[case]
    file = write(tmp_path / "dips.yaml", text)
    errors = load_screen(file, VOCABULARY)
    assert isinstance(errors, list)
    assert len(errors) == 1
    (error,) = errors
    assert (error.line, error.field, error.value) == (line, field, value)
    assert str(error).startswith(f"{file}:{line}: {field}")
    assert words in str(error)
    assert error.remedy
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    rules = load_screen(
        write(tmp_path / "dips.yaml", GOOD.replace("sma(20)", "x").replace("rsi(14)", "y") + "    columns: [z]\n"), VOCABULARY
    )
    assert isinstance(rules, list)
    assert [error.field for error in rules] == ["where", "rank.expression", "columns[0]"]
    keys = load_screen(write(tmp_path / "dips.yaml", GOOD.replace("4h", "4x") + "    limit: none\n"), VOCABULARY)
    assert isinstance(keys, list)
    assert [error.field for error in keys] == ["timeframe", "limit"]


def test_a_file_whose_name_cannot_name_a_screen(tmp_path):
    for name in ("Dips.yaml", "2dips.yaml", "my-dips.yaml", "dips__2.yaml"):
        errors = load_screen(write(tmp_path / name), VOCABULARY)
        assert isinstance(errors, list)
        assert "cannot name a screen" in str(errors[0])


def test_a_file_that_is_not_text(tmp_path):
    file = tmp_path / "dips.yaml"
    file.write_bytes(b"title: \xff\xfe\n")
    for path in (file, tmp_path / "absent.yaml"):
        errors = load_screen(path, VOCABULARY)
        assert isinstance(errors, list)
        assert "cannot be read" in str(errors[0])


def test_a_bad_file_hides_no_good_one(tmp_path):
    write(tmp_path / "a_bad.yaml", "title: [\n")
    write(tmp_path / "good.yaml")
    write(tmp_path / "z_bad.yml", GOOD.replace("4h", "5h"))
    write(tmp_path / "notes.txt", "not a screen")
    loaded = load_screens([tmp_path], VOCABULARY)
    assert list(loaded.screens) == ["good"]
    assert [error.file.name for error in loaded.errors] == ["a_bad.yaml", "z_bad.yml"]
    assert all(isinstance(error, ScreenError) for error in loaded.errors)


def test_one_name_in_two_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "dips.yaml")
    loaded = load_screens([tmp_path / "a", tmp_path / "b"], VOCABULARY)
    assert loaded.screens["dips"].file == tmp_path / "a" / "dips.yaml"
    (error,) = loaded.errors
    assert error.file == tmp_path / "b" / "dips.yaml"
    assert f"taken by {tmp_path / 'a' / 'dips.yaml'}" in str(error)


def test_a_folder_that_is_not_there(tmp_path):
    loaded = load_screens([tmp_path / "absent", BUILT_IN], VOCABULARY)
    assert "there is no such folder" in str(loaded.errors[0])
    assert len(loaded.errors) == 1
    assert loaded.screens


def test_the_screens_that_come_with_the_package():
    loaded = load_screens([BUILT_IN], VOCABULARY)
    assert not loaded.errors
    assert {screen.timeframe.name for screen in loaded.screens.values()} == {"1h", "4h", "1d"}
    for screen in loaded.screens.values():
        assert screen.description
        assert {str(call).partition(").")[0].removesuffix(")") + ")" for call in screen.calls} <= STORED


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*"[]{}:,-&*!|>'\"#%@ \n\t\0a1", "\n  ", "- ", "a: ", "? ", "<<: ", "*a", "&a ", "2026-99-01"]), max_size=12)
)
def test_any_text_is_yaml_or_a_yaml_error(pieces):
    error = _fault("".join(pieces))
    assert error is None or (error.line >= 1 and error.problem)


def _fault(text):
    try:
        read_yaml(text)
    except YamlError as error:
        return error
    return None


@pytest.mark.parametrize("cron", ["5 0 * * *", "*/15 * * * *", "0,30 9-17/2 1 1-6 0", "0  0 * * 7"])
def test_a_screen_may_name_its_own_times(tmp_path, cron):
    screen = load_screen(write(tmp_path / "dips.yaml", GOOD + f'    schedule: "{cron}"\n'), VOCABULARY)
    assert isinstance(screen, Screen)
    assert screen.schedule == " ".join(cron.split())
    assert screen.fingerprint == load_screen(write(tmp_path / "dips.yaml", GOOD), VOCABULARY).fingerprint


@pytest.mark.parametrize("cron", ["often", "* * * *", "60 * * * *", "* 24 * * *", "5-1 * * * *", "*/0 * * * *", "0 0 0 * *", "@daily"])
def test_times_that_cannot_be(tmp_path, cron):
    (error,) = load_screen(write(tmp_path / "dips.yaml", GOOD + f'    schedule: "{cron}"\n'), VOCABULARY)
    assert error.field == "schedule"
    assert "this is no time of cron's" in str(error)
    assert "'5 0 * * *'" in str(error)
