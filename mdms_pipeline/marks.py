"""YAML whose every value knows its line, so that errors can name it. Shared by screen files and strategy files.

ValueError
  YamlError     the text is not YAML
  FileError     one thing that is wrong in one file: file, line, field, value, remedy
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".yaml", ".yml")
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")  # names of screens and strategies become names in Dagster and in tables
MAX_SHOWN = 60  # characters of a wrong value
Place = tuple[str | int, ...]  # ("where", 1) is the second clause


class YamlError(ValueError):
    """The text is not YAML that can be used; `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        self.line, self.problem = line, problem
        super().__init__(f"line {line}: {problem}")


class FileError(ValueError):
    """One thing that is wrong in one file. `field` is like `where[1]`, empty where the file as a whole is meant."""

    def __init__(self, file: Path, line: int, field: str, value: str, problem: str, remedy: str) -> None:
        self.file, self.line, self.field, self.value, self.problem, self.remedy = file, line, field, value, problem, remedy
        where = ": ".join(filter(None, (f"{file}:{line}", f"{field} = {value}" if value else field)))
        super().__init__(f"{where}: {problem}\n{remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.file, self.line, self.field, self.value, self.problem, self.remedy)


@dataclass
class Marks:
    """Where each place of a YAML text is, in lines from 1."""

    lines: dict[Place, int] = field(default_factory=dict)  # of the key or the list item
    texts: dict[Place, int] = field(default_factory=dict)  # of the first line of a value's own text

    def line(self, place: Place) -> int:
        """The line of `place`, or of the nearest place around it where it is absent."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(text: str) -> tuple[Any, Marks]:
    """What `text` says and where; YamlError if it cannot be read, holds itself, or has a key twice."""
    marks = Marks()
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None, marks
        _mark(root, (), root.start_mark.line + 1, marks)
        return loader.construct_document(root), marks
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, error.problem or "this is not YAML") from None
    except RecursionError:
        raise YamlError(1, "this is nested too deep, or holds itself") from None
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML has not, or a scalar like 2026-13-45
        raise YamlError(1, str(error).splitlines()[0]) from None


def _mark(node: yaml.Node, place: Place, line: int, marks: Marks) -> None:
    """Note `node`, which is at `place` on `line`, and all below it."""
    marks.lines[place] = line
    marks.texts[place] = node.start_mark.line + 1 + (isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _mark(item, (*place, i), item.start_mark.line + 1, marks)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            key_line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                raise YamlError(key_line, f"a key must be a word, this is {key.value!r}")
            if (*place, key.value) in marks.lines:
                raise YamlError(key_line, f"the key {key.value!r} is here for the second time")
            _mark(value, (*place, key.value), key_line, marks)


def dotted(place: Place) -> str:
    """`where[1]`, `rank.direction`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def shown(value: Any) -> str:
    """A wrong value as an error message repeats it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))  # the bounds of minute, hour, day, month and weekday


def cron(text: str) -> str:
    """Five fields of cron, spaces put right. ValueError where it names no time."""
    fields = text.split()
    if len(fields) != len(CRON) or not all(_cron_field(field, *bounds) for field, bounds in zip(fields, CRON, strict=True)):
        raise ValueError("this is no time of cron's")
    return " ".join(fields)


def _cron_field(text: str, least: int, most: int) -> bool:
    """Whether `text` is a list of numbers, ranges and steps within the bounds: `*/5`, `0,30`, `9-17/2`."""
    for part in text.split(","):
        match = re.fullmatch(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/([1-9]\d?))?", part)
        if match is None:
            return False
        first, last = (int(match[1] or least), int(match[2] or match[1] or most))
        if not least <= first <= last <= most:
            return False
    return True
