from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from vidssl.registry import (
    ConfigError,
    PositiveInt,
    Registry,
    UnitInterval,
    Within,
    check_options,
    check_value,
    read_options,
    schema,
    unknown,
)

PARTS = Registry("part", "vidssl.registry")


@dataclass(frozen=True)
class Inner:
    size: PositiveInt
    name: str | None


@PARTS.register("example")
class Example:
    def __init__(
        self,
        network: object,
        *,
        share: UnitInterval,
        kind: Literal["fast", "slow"],
        size: Annotated[int, Within("(0, 10)")] | None,
        pair: tuple[float, float],
        many: list[int],
        inner: Inner,
        word: Literal["auto"] | PositiveInt,
        flag: bool,
    ):
        self.options = (share, kind, size, pair, many, inner, word, flag)
        self.network = network


GOOD = {
    "share": 1, "kind": "fast", "size": None, "pair": [1, 2.5], "many": [], "inner": {"size": 3, "name": None},
    "word": "auto", "flag": False,
}  # fmt: skip


def test_a_part_is_built_from_its_section_and_the_things_it_works_with() -> None:
    part = PARTS.build({"name": "example", **GOOD}, "network")
    assert part.network == "network"
    assert part.options == (1.0, "fast", None, (1.0, 2.5), (), Inner(3, None), "auto", False)
    assert isinstance(part.options[0], float)
    assert not PARTS.check({"name": "example", **GOOD}, "part")


def test_keyword_only_options_are_the_schema() -> None:
    assert set(schema(Example)) == set(GOOD)


WRONG = {
    "share": (1.5, r"part.share=1.5: must lie in \[0, 1\]"),
    "kind": ("fats", "part.kind=fats: no such value. Did you mean fast\\? Allowed values: fast, slow"),
    "size": (10, r"part.size=10: must lie in \(0, 10\)"),
    "pair": ([1], "part.pair=\\[1\\]: must be a list of 2: a number; a number"),
    "many": ([1, "x"], r"part.many\[1\]=x: must be a whole number"),
    "inner": ({"size": 0, "nmae": "a"}, "part.inner.size=0: must lie in"),
    "word": ("automatic", "part.word=automatic: must be one of auto or a whole number"),
    "flag": ("yes", "part.flag=yes: must be true or false"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_value_is_told_with_key_and_what_is_allowed(name: str) -> None:
    value, message = WRONG[name]
    problems = PARTS.check({"name": "example", **GOOD, name: value}, "part")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(problems)


def test_all_mistakes_are_told_at_once() -> None:
    section = {"name": "example", **GOOD, "share": 2, "kind": "x", "inner": {"size": 1, "nmae": 1}, "extra": 1}
    del section["flag"]
    problems = PARTS.check(section, "part")
    keys = sorted(problem.split("=")[0].split(":")[0] for problem in problems)
    assert keys == ["part.extra", "part.flag", "part.inner.name", "part.inner.nmae", "part.kind", "part.share"]
    assert any("Did you mean part.inner.name?" in problem for problem in problems)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [(True, int), (1.0, int), ("1", float), (None, str), (1, str), ([1], dict), ("???", int), (True, UnitInterval)],
)
def test_values_of_another_type_are_refused(value: object, annotation: object) -> None:
    assert len(check_value(value, annotation, "key")) == 1


def test_an_unknown_name_brings_the_nearest_and_all_others() -> None:
    assert unknown("method", "fmae", ["moco", "fame"], "names") == (
        "method=fmae: no such name. Did you mean fame? Allowed names: fame, moco"
    )
    with pytest.raises(ConfigError, match="Did you mean example"):
        PARTS.get("exampel")
    assert "choose one of example" in PARTS.check(None, "part")[0]


def test_dataclasses_are_schemas_too() -> None:
    assert check_options(Inner, {"size": 2, "name": "a"}, "") == []
    assert read_options(Inner, {"size": 2, "name": "a"}) == {"size": 2, "name": "a"}


def test_intervals() -> None:
    assert Within("[0, 1)").allows(0)
    assert not Within("[0, 1)").allows(1)
    assert not Within("(0, inf)").allows(0)
    assert Within("(0, inf)").allows(1e300)


def test_a_broken_file_takes_away_only_its_own_parts_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    room = tmp_path / "brokenroom"
    room.mkdir()
    (room / "__init__.py").write_text(
        "from vidssl.registry import Registry\nTHINGS = Registry('thing', 'brokenroom')\n"
    )
    (room / "good.py").write_text("from brokenroom import THINGS\n@THINGS.register('good')\ndef good(): return 7\n")
    (room / "bad.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    things = importlib.import_module("brokenroom").THINGS
    assert things.names() == ["good"]
    assert things.build({"name": "good"}) == 7
    assert capsys.readouterr().err.count("brokenroom.bad cannot be imported (ModuleNotFoundError: No module named") == 1
    with pytest.raises(ConfigError, match=r"thing=bad: no such name.*brokenroom\.bad cannot be imported: Module"):
        things.get("bad")
    (problem,) = things.check({"name": "bad"}, "thing")
    assert "brokenroom.bad cannot be imported" in problem
