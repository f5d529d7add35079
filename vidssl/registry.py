"""Registries of configurable parts, and the check of options against type annotations.

The keyword-only parameters of a registered class or function are its schema: their annotations say what is allowed,
the YAML file of the same name holds the values. Neither is written twice.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

MISSING = "???"  # how OmegaConf writes a value that the user has to give


class ConfigError(ValueError):
    """A configuration or an input cannot be used. `problems`: one line each, with key, value and what is allowed."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunError(RuntimeError):
    """What ends a sound run: one line tells it, with status 1, and the same command goes on from the saved state."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number as an interval: Within("[0, 1)"), Within("[1, inf)")."""

    interval: str

    def allows(self, number: float) -> bool:
        low, high = (float(bound) for bound in self.interval[1:-1].split(","))
        above = number >= low if self.interval[0] == "[" else number > low
        return above and (number <= high if self.interval[-1] == "]" else number < high)

    def problems(self, number: float, key: str) -> list[str]:
        return [] if self.allows(number) else [f"{key}={number}: must lie in {self.interval}"]

    def __str__(self) -> str:
        return f"in {self.interval}"


class OnDisk:
    """Path of a file or folder; ~ and ~user at its beginning are home folders."""

    def problems(self, path: str, key: str) -> list[str]:
        if path.startswith("~") and expand_home(path) == path:
            user = path.split("/")[0]
            return [f"{key}={path}: {user} is no user's home here; a folder of this name is ./{path}"]
        return []

    def __str__(self) -> str:
        return "that is a path"


def expand_home(path: str) -> str:
    """Replace ~ and ~user at the beginning of a path; unchanged if there is no such user."""
    return os.path.expanduser(path)


LARGEST = {int: 2**63 - 1, float: sys.float_info.max}  # of int64 and float64
FilePath = Annotated[str, OnDisk()]  # vidssl.run.words lists the names of the keys
Seed = Annotated[int, Within("[0, 4294967295]")]  # 32 bits, which every random generator accepts
PositiveInt = Annotated[int, Within("[1, inf)")]
NonNegativeInt = Annotated[int, Within("[0, inf)")]
UnitInterval = Annotated[float, Within("[0, 1]")]
PositiveFloat = Annotated[float, Within("(0, inf)")]
NonNegativeFloat = Annotated[float, Within("[0, inf)")]


class Registry:
    """Parts of one kind by name: methods, backbones, ...; the modules of `home` are imported at first use."""

    def __init__(self, kind: str, home: str):
        self.kind, self.home = kind, home
        self.broken: dict[str, str] = {}  # module that cannot be imported -> why
        self._parts: dict[str, Callable] = {}
        self._filled = False

    def register(self, *names: str) -> Callable[[Callable], Callable]:
        def enter(part: Callable) -> Callable:
            for name in names:
                assert name not in self._parts, f"two {self.kind} parts are called {name}"
                self._parts[name] = part
            return part

        return enter

    def names(self) -> list[str]:
        self._fill()
        return sorted(self._parts)

    def get(self, name: str) -> Callable:
        self._fill()
        if name not in self._parts:
            raise ConfigError(self._unknown(self.kind, name))
        return self._parts[name]

    def _unknown(self, key: str, name: str) -> str:
        broken = "".join(f". {module} cannot be imported: {reason}" for module, reason in self.broken.items())
        return unknown(key, name, self.names(), "names") + broken

    def check(self, section: Any, key: str) -> list[str]:
        """Problems of the configuration section `{name: ..., option: ...}` under `key`."""
        if not isinstance(section, dict) or "name" not in section:
            return [f"{key}={section!r}: choose one of {', '.join(self.names())}"]
        name = section["name"]
        if name not in self.names():
            return [self._unknown(f"{key}.name", name)]
        return check_options(self.get(name), {k: v for k, v in section.items() if k != "name"}, key)

    def build(self, section: dict, *parts: Any) -> Any:
        """Build the part that a checked section names. parts: runtime objects, passed before the section's options."""
        make = self.get(section["name"])
        return make(*parts, **read_options(make, {k: v for k, v in section.items() if k != "name"}))

    def _fill(self) -> None:
        """Import the modules of `home`. A broken one is reported once and only its own parts are missing."""
        if self._filled:
            return
        self._filled = True
        home = importlib.import_module(self.home)
        for module in pkgutil.iter_modules(getattr(home, "__path__", [])):
            name = f"{self.home}.{module.name}"
            try:
                importlib.import_module(name)
            except Exception as error:  # a module may raise anything when it is imported
                self.broken[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                print(f"warning: {name} cannot be imported ({self.broken[name]})", file=sys.stderr)


def nearest(value: Any, allowed: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Allowed word that is most similar to a value; anagrams come first. None if none is similar."""
    near = get_close_matches(str(value), list(allowed), n=5, cutoff=cutoff)
    return min(near, key=lambda word: sorted(word) != sorted(str(value)), default=None)


def unknown(key: str, value: Any, allowed: Iterable[str], noun: str = "values") -> str:
    """Message about a value that is not among the allowed ones, with the nearest of them."""
    allowed = sorted(allowed)
    near = nearest(value, allowed)
    hint = f" Did you mean {near}?" if near else ""
    return f"{key}={value}: no such {noun.rstrip('s')}.{hint} Allowed {noun}: {', '.join(allowed)}"


# ---------------------------------------------------------------------------------------------------------------------
# Options against annotations


@cache
def schema(make: Callable) -> dict[str, Any]:
    """Options that the configuration may set of `make`: name -> annotation."""
    target = make.__init__ if inspect.isclass(make) and not is_dataclass(make) else make
    if is_dataclass(make):
        hints = get_type_hints(make, include_extras=True)
        return {field.name: hints[field.name] for field in fields(make)}
    hints = get_type_hints(target, include_extras=True)
    parameters = inspect.signature(target).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_options(make: Callable, options: dict[str, Any], key: str) -> list[str]:
    """Problems of the options under `key`: unknown, missing, wrong type, out of range.

    make.removed: options of earlier versions -> what to do instead.
    """
    known, problems, removed = schema(make), [], getattr(make, "removed", {})
    prefix = f"{key}." if key else ""
    for name, value in options.items():
        if name in removed:
            problems.append(f"{prefix}{name}={value}: this key was removed; {removed[name]}")
        elif name not in known:
            near = nearest(name, known)
            hint = f" Did you mean {prefix}{near}?" if near else ""
            problems.append(f"{prefix}{name}={value}: unknown key.{hint} Allowed keys: {', '.join(sorted(known))}")
        else:
            problems += check_value(value, known[name], f"{prefix}{name}")
    problems += [f"{prefix}{name}: missing; give {prefix}{name}=..." for name in known if name not in options]
    return problems


def check_value(value: Any, annotation: Any, key: str) -> list[str]:
    """Problems of the value of one key."""
    if value == MISSING:
        return [f"{key}: missing; give {key}=..."]
    if isinstance(value, str) and not value.strip() and annotation is not Any:
        return [f"{key}: empty; a shell variable that is not set leaves it so; give {key}=... or leave the word out"]
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return []
    if origin is Annotated:
        if isinstance(inner[1], Registry):
            return inner[1].check(value, key)
        problems = check_value(value, inner[0], key)
        if value is None or (problems and not (isinstance(inner[1], Within) and _is_number(value))):
            return problems
        return inner[1].problems(value, key) or problems
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return []
        options = [check_value(value, option, key) for option in inner if option is not type(None)]
        fewest = min(options, key=len)
        return fewest if len(options) == 1 or not fewest else [f"{key}={value}: must be {_describe(annotation)}"]
    if origin is Literal:
        return [] if value in inner else [unknown(key, value, map(str, inner))]
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return [f"{key}={value}: must be {_describe(annotation)}"]
        kinds = _kinds(origin, inner, len(value))
        if len(value) != len(kinds):
            return [f"{key}={list(value)}: must be {_describe(annotation)}"]
        pairs = zip(value, kinds, strict=True)
        return [problem for i, (item, kind) in enumerate(pairs) for problem in check_value(item, kind, f"{key}[{i}]")]
    if _is_section(annotation):
        if not isinstance(value, dict):
            return [f"{key}={value}: must be a section with the keys {', '.join(schema(annotation))}"]
        return check_options(annotation, value, key)
    largest = LARGEST.get(annotation) if _is_number(value) else None
    if largest is not None and not abs(value) <= largest:  # nan is refused as well
        return [f"{key}={value}: must be {_describe(annotation)} of at most {largest}"]
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and _is_number(value),
        float: _is_number(value),
        str: isinstance(value, str),
        dict: isinstance(value, dict),
    }[annotation]
    return [] if fits else [f"{key}={value}: must be {_describe(annotation)}"]


def _is_section(annotation: Any) -> bool:
    return is_dataclass(annotation)


def _kinds(origin: Any, inner: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    """Annotations of the items of a list[T], tuple[T, ...] or tuple[T, U] with `length` items."""
    return inner if origin is tuple and inner[-1] is not Ellipsis else (inner[0],) * length


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _describe(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{_describe(inner[0])} {inner[1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"a list, each item {_describe(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}: " + "; ".join(map(_describe, inner))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def read_options(make: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """Convert checked plain values to their annotated types: tuples for lists, dataclasses for sections."""
    known = schema(make)
    return {name: _read(value, known[name]) for name, value in options.items()}


def _read(value: Any, annotation: Any) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if value is None or annotation is Any:
        return value
    if origin is Annotated:
        return expand_home(value) if isinstance(inner[1], OnDisk) else _read(value, inner[0])
    if origin in (Union, types.UnionType):
        fitting = [option for option in inner if option is not type(None) and not check_value(value, option, "")]
        return _read(value, fitting[0]) if fitting else value
    if origin in (list, tuple):
        return tuple(_read(item, kind) for item, kind in zip(value, _kinds(origin, inner, len(value)), strict=True))
    if _is_section(annotation):
        return annotation(**read_options(annotation, value))
    return float(value) if annotation is float else value
