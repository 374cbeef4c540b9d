"""Strategy files: what is right is read, what is wrong is refused with file, line, field and remedy before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdms_pipeline.backtest.strategy import BUILT_IN, ParamError, Recipe, load_strategies, load_strategy
from mdms_pipeline.vocabulary import vocabulary
from mdms_pipeline_tests.backtest.markets import GOOD, recipe, write


def test_the_built_in_ones_are_right() -> None:
    loaded = load_strategies([BUILT_IN], vocabulary())
    assert not loaded.errors
    assert sorted(loaded.recipes) == ["breakout", "pullback", "trend_following"]
    assert all(2 <= len(list(each.combinations())) <= 100 for each in loaded.recipes.values())


def test_parameters_are_filled_in(tmp_path: Path) -> None:
    found = recipe(tmp_path)
    assert str(found.usual.entry) == "crosses_above(sma(5), sma(20))"
    assert str(found.bind({"fast": 8}).entry) == "crosses_above(sma(8), sma(20))"
    assert len(list(found.combinations())) == 9
    assert found.bind({"fast": 8}).fingerprint != found.usual.fingerprint == recipe(tmp_path).usual.fingerprint
    with pytest.raises(ParamError, match="has no parameter 'fsat': did you mean fast"):
        found.bind({"fsat": 8})
    with pytest.raises(ParamError, match="must be above 0"):
        found.bind({"fast": 0})


def test_a_range_is_swept_with_both_ends(tmp_path: Path) -> None:
    text = GOOD.replace("fast: {value: 5, sweep: [3, 5, 8]}", "fast: {value: 5, from: 1, to: 2, step: 0.1}")
    text = text.replace("sma(fast)", "bollinger(20, fast).upper")
    assert recipe(tmp_path, text).params["fast"].sweep == tuple(1 + i * 0.1 for i in range(11))


WRONG = {
    "unknown indicator": ("entry: crosses_above(sma(fast), sma(slow))", "entry: close > smaa(20)", 4, "entry", "did you mean sma"),
    "stop below zero": ("size:", "stop: -0.05\n    size:", 6, "stop", "-0.05 is not above 0"),
    "stop of everything": ("size:", "stop: 1.0\n    size:", 6, "stop", "between 0 and 1"),
    "empty universe": ("[KRW-BTC]", "[]", 3, "universe", "the universe is empty"),
    "no universe": ("    universe: [KRW-BTC]\n", "", 1, "universe", "is missing"),
    "not a market": ("[KRW-BTC]", "[BTC]", 3, "universe", "write it like KRW-BTC"),
    "unknown key": ("entry:", "entri:", 4, "entri", "did you mean entry"),
    "unknown timeframe": ("1h", "7h", 2, "timeframe", "use one of"),
    "a sweep of ten million": ("sweep: [3, 5, 8]", "from: 1, to: 10000000, step: 1", 8, "params", "10,000,000 values is too long"),
    "combinations that multiply": ("sweep: [3, 5, 8]", "from: 1, to: 9000, step: 1", 8, "params", "27,000 combinations is too long"),
    "a position that never closes": ("    exit: crosses_below(sma(fast), sma(slow))\n", "", 4, "entry", "nothing ever closes a position"),
    "an entry that reads the position": (
        "entry: crosses",
        "entry: close > entry_price and crosses",
        4,
        "entry",
        "unknown name 'entry_price'",
    ),
    "the position a bar ago": ("exit: crosses_below(sma(fast), sma(slow))", "exit: close < entry_price[1]", 5, "exit", "no earlier bar"),
    "a size that is none": ("{fraction: 0.5}", "{share: 0.5}", 6, "size", "this names no size"),
    "more than everything": ("{fraction: 0.5}", "{fraction: 1.5}", 6, "size", "at most 1"),
    "a parameter called close": ("fast: {value: 5", "close: {value: 5", 9, "params.close", "rules know already"),
    "no such screen": ("[KRW-BTC]", "{screen: nothing}", 3, "universe", "there is no such screen"),
    "a negative fee": ("fee: 0,", "fee: -1,", 7, "costs.fee", "greater than or equal to 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    old, new, line, field, said = WRONG[case]
    assert old in GOOD
    found = load_strategy(write(tmp_path, GOOD.replace(old, new, 1)), vocabulary())
    assert isinstance(found, list), f"{case} was taken"
    error = next((each for each in found if each.field.startswith(field)), found[0])
    assert error.line == line, str(error)
    assert said in str(error)
    assert error.remedy


def test_a_bad_file_hides_no_good_one(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "title: [", "broken")
    (tmp_path / "Bad Name.yaml").write_text("title: x")
    loaded = load_strategies([tmp_path], vocabulary())
    assert list(loaded.recipes) == ["mine"]
    assert len(loaded.errors) >= 2


def test_a_universe_by_screen_takes_its_rules(tmp_path: Path) -> None:
    screens = tmp_path / "screens"
    screens.mkdir()
    write(screens, "title: x\ntimeframe: 1h\nwhere: [close > sma(20), rsi(14) < 70]\nrank: {expression: close, direction: asc}", "strong")
    found = load_strategy(write(tmp_path, GOOD.replace("[KRW-BTC]", "{screen: strong}")), vocabulary(), [screens])
    assert isinstance(found, Recipe)
    assert [str(rule) for rule in found.usual.screen] == ["close > sma(20)", "rsi(14) < 70"]
    other = load_strategy(write(tmp_path, GOOD.replace("[KRW-BTC]", "{screen: strong}").replace("1h", "4h")), vocabulary(), [screens])
    assert isinstance(other, list)
    assert "the screen is of 1h, the strategy of 4h" in str(other[0])
