"""Both READMEs: everything there is is in them, nothing is in them that is not, and they say the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import mdms_pipeline
from mdms_pipeline.calculate.catalog import DEFAULTS
from mdms_pipeline.cli import main
from mdms_pipeline.definitions import build
from mdms_pipeline.defs.resources import Mdms
from mdms_pipeline.market import TIMEFRAMES
from mdms_pipeline.screen import BUILT_IN, load_screens
from mdms_pipeline.settings import SETTINGS, Settings
from mdms_pipeline.vocabulary import vocabulary
from mdms_pipeline_tests.docs.pages import PAGES, READMES, ROOT, blocks, coded, headings, links, prose, table_of, tables, text

KINDS_OF_THE_PACKAGE = {indicator.kind.name for indicator in DEFAULTS}


def options(command: click.Command) -> set[str]:
    return {
        name for parameter in command.params if isinstance(parameter, click.Option) for name in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}


@pytest.mark.parametrize("page", READMES)
def test_every_command_is_there_and_no_other(page: str) -> None:
    said = [coded(row[0])[0].split()[1] for row in table_of(page, "`mdms run`")]
    assert said == list(dict.fromkeys(said))
    assert set(said) == set(main.commands)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_named_exists_with_its_options(page: str) -> None:
    for line in re.findall(r"\bmdms ([a-z][^`\n]*)", "\n".join(coded(prose(page)) + [block.code for block in blocks(page, "sh")])):
        name = line.split()[0]
        assert name in main.commands, f"{page} names `mdms {name}`"
        given = set(re.findall(r"--[a-z-]+", line.split("#")[0]))
        assert given <= options(main.commands[name]), f"{page}: `mdms {line}`"


@pytest.mark.parametrize("page", READMES)
def test_options_of_a_row_are_those_of_its_command(page: str) -> None:
    for row in table_of(page, "`mdms run`"):
        command = main.commands[coded(row[0])[0].split()[1]]
        assert set(re.findall(r"--[a-z-]+", row[1])) <= options(command), row


@pytest.mark.parametrize("page", READMES)
def test_settings(page: str) -> None:
    rows = {coded(row[0])[0]: row for row in table_of(page, "`MDMS_HOME`")}
    assert list(rows) == list(SETTINGS)
    for name, (default, _) in SETTINGS.items():
        assert coded(rows[name][1]) == ([default] if default else []), name


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_is_named_exists(page: str) -> None:
    assert set(re.findall(r"\bMDMS_[A-Z_]+", text(page))) <= set(SETTINGS)


@pytest.mark.parametrize("page", READMES)
def test_timeframes_are_listed(page: str) -> None:
    assert " ".join(TIMEFRAMES) in text(page)


@pytest.mark.parametrize("page", READMES)
def test_every_default_indicator_is_there_and_no_other(page: str) -> None:
    rows = table_of(page, "`sma(n)`")
    assert {coded(row[0])[0].split("(")[0] for row in rows if row[0]} == KINDS_OF_THE_PACKAGE
    assert sorted(call for row in rows for call in coded(row[2])) == sorted(indicator.call for indicator in DEFAULTS)


@pytest.mark.parametrize("page", READMES)
def test_first_and_stable_after(page: str) -> None:
    """Both columns hold a formula in n, or the numbers of the variants (of their outputs) in their order."""
    known = {indicator.call: indicator for indicator in DEFAULTS}
    for row in table_of(page, "`sma(n)`"):
        variants = [known[call] for call in coded(row[2])]
        for variant in variants:
            assert stated(row[3], variant.params[0] if variant.params else 0, variant.first), row
        after = [variant.stable_after for variant in variants]
        numbers = [int(number) for number in re.findall(r"\b\d{2,}\b|^\d$", row[4])]
        assert numbers == after or all(stated(row[4], v.params[0], (v.stable_after,)) for v in variants), row


def stated(cell: str, n: float, values: tuple[int, ...]) -> bool:
    """Whether `n - 1`, `n` or a list of numbers says these values."""
    if cell in ("n", "n - 1"):
        return set(values) == {n - (cell == "n - 1")}
    return {int(number) for number in re.findall(r"\d+", cell)} == set(values)


@pytest.mark.parametrize("page", READMES)
def test_every_screen_is_there_with_its_timeframe(page: str) -> None:
    for name, screen in load_screens([BUILT_IN], vocabulary()).screens.items():
        assert f"`{name}` ({screen.timeframe})" in prose(page)


@pytest.mark.parametrize("page", READMES)
def test_every_sensor_is_there_and_no_other(page: str) -> None:
    sensors = build(Mdms(Settings.load({"MDMS_EXCHANGE_URL": "sandbox"}))).sensors or ()
    assert [coded(row[0])[0] for row in table_of(page, "`listings`")] == [sensor.name for sensor in sensors]


@pytest.mark.parametrize("page", READMES)
def test_the_graph(page: str) -> None:
    """The drawn edges are those of the assets."""
    graph = build(Mdms(Settings.load({"MDMS_EXCHANGE_URL": "sandbox"}))).resolve_asset_graph()
    real = {(up.to_user_string(), key.to_user_string()) for key in graph.get_all_asset_keys() for up in graph.get(key).parent_keys}
    drawn = set()
    for line in blocks(page, "mermaid")[0].code.splitlines()[1:]:
        before, after = (side.split("&") for side in line.split("-->"))
        drawn |= {(up.strip(), down.strip()) for up in before for down in after}
    assert drawn == real


def test_both_say_the_same() -> None:
    english, korean = READMES
    assert headings(english) == headings(korean)
    assert blocks(english) == blocks(korean)
    assert [[len(row) for row in table] for table in tables(english)] == [[len(row) for row in table] for table in tables(korean)]
    assert links(english)[1:] == links(korean)[1:]  # the first leads to the other language
    assert set(coded(prose(english))) == set(coded(prose(korean)))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    for link in links(page):
        file = (ROOT / page).parent / link.split("#")[0].replace("\\_", "_")
        assert file.exists(), f"{page}: {link}"
        assert file.resolve().is_relative_to(ROOT)


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_and_scripts_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join([*coded(prose(page)), *(block.code for block in blocks(page, "sh"))])
    assert set(re.findall(r"\bmake ([a-z]+)", commands)) <= targets
    for path in re.findall(r"(?:bash|python) (\S+/\S+)", commands):
        assert (ROOT / path).exists(), path


def test_every_make_target_says_what_it_is_for_somewhere() -> None:
    for name in ("demo", "dev", "test", "lint"):
        assert f"make {name}" in text("README.md")


# In halves, so that this file does not hold what it looks for.
FORBIDDEN = re.compile("|".join(("/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/opt" + "/pypi", "index" + "-url", "PIP_" + "INDEX")))


def test_no_tracked_file_names_a_machine() -> None:
    """No path of somebody's machine and no address of a package index."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split("\n"):
        file = ROOT / name
        if not name or not file.is_file():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            assert not FORBIDDEN.search(line), f"{name}:{number}: {line.strip()}"


def test_the_map_names_files_that_exist() -> None:
    """The package's docstring: a step's first file or folder is of the package, the others are of that folder or of the package."""
    package = ROOT / "mdms_pipeline"
    for line in (mdms_pipeline.__doc__ or "").splitlines():
        named = re.findall(r"`([a-z_/]+(?:\.py|/))`", line)
        for name in named:
            assert (package / name).exists() or (package / named[0] / name).exists(), f"{name} in {line!r}"


def test_the_map_names_every_folder() -> None:
    folders = {file.parent.name for file in (ROOT / "mdms_pipeline").glob("*/__init__.py")}
    assert {f"`{name}/`" for name in folders} <= set(re.findall(r"`[a-z_]+/`", mdms_pipeline.__doc__ or ""))


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_a_script_begins_as_the_pages_say(script: Path, tmp_path: Path) -> None:
    """From any folder, without a path set by hand; two could not find what they share with the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    asked = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (asked.returncode, asked.stdout[:6]) == (0, "usage:"), asked.stderr
