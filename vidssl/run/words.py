"""Command-line arguments, quoted so that Hydra reads what was typed.

Hydra's grammar gives a meaning to `=`, `,`, brackets and quotes, and accepts no `#`, `&`, `~` or non-ASCII letters
outside of quotes. Values of path keys are taken literally, except for null, ${...} and values that are quoted already.
In a multirun, commas separate the paths of several runs, unless the whole value is the name of something on disk.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from vidssl.registry import ConfigError, expand_home

PATHS = frozenset(
    (
        "output",
        "checkpoint",
        "root",
        "annotations",
        "train_list",
        "test_list",
        "index_folder",
        "cache_folder",
        "runs",
        "video",
        "against",
        "files",
    )
)  # fmt: skip  the last part of each key annotated as FilePath; listed, because reading annotations would import torch
HYDRA_PATHS = frozenset(("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"))
CLOSING = {"(": ")", "[": "]", "{": "}"}


def overrides(words: Iterable[str]) -> list[str]:
    """Overrides among the arguments, without flags and their values."""
    return [word for word in words if not word.startswith("-") and ("=" in word or word.startswith("~"))]


def is_multirun(words: Iterable[str]) -> bool:
    return any(word in ("-m", "--multirun", "hydra.mode=MULTIRUN") or word.startswith("sweeps=") for word in words)


def parsed(word: str, options: Callable[[str], list[str]] = lambda group: []) -> Override | str:
    """Override as parsed by Hydra, or a message about what is wrong with it. options: names in a group, for glob()."""
    try:
        override = OverridesParser.create().parse_override(word)
    except ValueError as error:  # a number of thousands of digits
        return f"{word[:60]}...: cannot be read ({error})"
    except HydraException as error:
        return _unreadable(word, str(error).splitlines()[0])
    if not override.key_or_group:
        return f"{word}: not of the form KEY=VALUE"
    glob = override.value()
    if isinstance(glob, Glob):
        known = options(override.key_or_group)
        names = glob.filter(known)
        if not known:
            return f"{word}: glob() chooses among the names of a group, and {override.key_or_group} is none"
        if not names:
            return f"{word}: matches none of {', '.join(known)}"
        return parsed(f"{override.get_key_element()}=choice({','.join(names)})")
    return override


def _unreadable(word: str, reason: str) -> str:
    key, _, value = word.partition("=")
    again = f"{key}={quoted(value)}"
    try:
        OverridesParser.create().parse_override(again)
    except HydraException:
        return f"{word}: cannot be read ({reason}); {key} is no key, write KEY=VALUE"
    return (
        f"{word}: cannot be read ({reason}); for this text as it is type {shlex.quote(again)}, "
        "for a list or several values quote the whole word: 'KEY=[a,b]'"
    )


def quoted(text: str) -> str:
    """Quote a text for Hydra; ${...} in it keeps its meaning."""
    return QuotedString(text, Quote.double).with_quotes()


# ---------------------------------------------------------------------------------------------------------------------
# Paths


def is_path(key: str) -> bool:
    return key in HYDRA_PATHS or key.rpartition(".")[2] in PATHS


def paths_as_typed(words: list[str]) -> list[str]:
    """Arguments with the values of path keys quoted where Hydra would read something else."""
    several = is_multirun(words)
    settings = set(overrides(words))
    return [_path_as_typed(word, several) if word in settings else word for word in words]


def _path_as_typed(word: str, several: bool) -> str:
    key, _, value = word.partition("=")
    if key.startswith("~") or not is_path(key.lstrip("+")):
        return word
    if value.startswith("[") and key.endswith(".files"):  # a list of paths
        return word if not isinstance(parsed(word), str) else f"{key}=[{_each_as_typed(value[1:-1])}]"
    choice = re.fullmatch(r"choice\((.*)\)", value, re.DOTALL)
    if several and not os.path.lexists(expand_home(value)) and (choice or len(list(_split(value))) > 1):
        return f"{key}={_each_as_typed(choice[1] if choice else value)}"
    return f"{key}={_as_typed(value, key)}"


def _each_as_typed(values: str) -> str:
    return ",".join(_as_typed(value.strip()) for value in _split(values))


def _as_typed(value: str, key: str = "") -> str:
    """Quote one path. In folders that Hydra creates itself, ~ is replaced."""
    if key in HYDRA_PATHS:
        value = expand_home(value)
    override = parsed(f"key={value}")
    if not isinstance(override, str) and not override.is_sweep_override():
        read = override.value()
        # a backslash that Hydra removed was typed for Hydra
        if read is None or read == value or isinstance(override._value, QuotedString) or "\\" in value:
            return value
    return quoted(value)


def _split(values: str) -> Iterator[str]:
    """Split at commas outside of brackets and quotes."""
    begin = 0
    expected: list[str] = []  # closing brackets and quotes of the open ones
    for position, letter in enumerate(values):
        if expected and letter == expected[-1]:
            expected.pop()
        elif letter in "\"'" and (not expected or expected[-1] not in "\"'") and letter in values[position + 1 :]:
            expected.append(letter)
        elif letter in CLOSING and CLOSING[letter] in values[position:] and (not expected or expected[-1] not in "\"'"):
            expected.append(CLOSING[letter])
        elif letter == "," and not expected:
            yield values[begin:position]
            begin = position + 1
    yield values[begin:]


# ---------------------------------------------------------------------------------------------------------------------
# Sweeps


def globs_in_full(words: list[str], options: Callable[[str], list[str]]) -> list[str]:
    """Write `method=glob(be*)` as `method=be,be_pretext,be_triplet`. Raises ConfigError if nothing matches."""
    return [_glob_in_full(word, options) if "=glob(" in word else word for word in words]


def _glob_in_full(word: str, options: Callable[[str], list[str]]) -> str:
    override = parsed(word, options)
    if isinstance(override, str):
        raise ConfigError(override)
    if override.value_type != ValueType.CHOICE_SWEEP:
        return word
    return f"{override.get_key_element()}={','.join(override.sweep_string_iterator())}"


def values_of(override: Override) -> list[Any]:
    """Values of a sweep in order, as Hydra writes them; of an interval its two ends."""
    interval = override.value()
    if isinstance(interval, IntervalSweep):
        return [str(interval.start), str(interval.end)]
    return (
        list(override.sweep_string_iterator())
        if override.is_sweep_override()
        else [override.get_value_element_as_str()]
    )
