from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch

from vidssl.registry import (
    ConfigError,
    FilePath,
    PositiveInt,
    Registry,
    Seed,
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
def test_each_wrong_value_is_reported_with_key_and_what_is_allowed(name: str) -> None:
    value, message = WRONG[name]
    problems = PARTS.check({"name": "example", **GOOD, name: value}, "part")
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(problems)


def test_all_mistakes_are_reported_at_once() -> None:
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


@pytest.mark.parametrize(
    ("value", "annotation", "problem"),
    [
        (10**20, Seed, "must lie in [0, 4294967295]"),
        (2**32, Seed, "must lie in [0, 4294967295]"),
        (-1, Seed, "must lie in [0, 4294967295]"),
        (float("nan"), Seed, "must lie in [0, 4294967295]"),
        (True, Seed, "must be a whole number"),
        ("1.0", Seed, "must be a whole number"),
        (1.0, Seed, "must be a whole number"),
        (2**63, PositiveInt, "must be a whole number of at most 9223372036854775807"),
        (float("inf"), UnitInterval, "must lie in [0, 1]"),
        (float("nan"), float, "must be a number of at most 1.79"),
        (10**400, float, "must be a number of at most 1.79"),
        (float("inf"), float, "must be a number of at most 1.79"),
        (
            "~no.such.user/x",
            FilePath,
            "~no.such.user is no user's home here; a folder of this name is ./~no.such.user/x",
        ),
    ],
)
def test_numbers_and_paths_that_nothing_can_take_are_refused(value: object, annotation: object, problem: str) -> None:
    (line,) = check_value(value, annotation, "key")
    assert line.startswith("key=")
    assert problem in line


@pytest.mark.parametrize("annotation", [str, FilePath, FilePath | None, PositiveInt, Literal["a", "b"], list[str]])
def test_nothing_may_be_empty(annotation: object) -> None:
    for empty in ("", "  "):
        assert check_value(empty, annotation, "key")[0].startswith("key: empty; a shell variable that is not set")


def test_a_home_folder_is_put_in_where_options_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    def make(*, root: FilePath | None, files: list[FilePath], name: str) -> None: ...

    read = read_options(make, {"root": "~/a=b", "files": ["~/x", "y"], "name": "~"})
    assert read == {"root": "/home/me/a=b", "files": ("/home/me/x", "y"), "name": "~"}
    assert read_options(make, {"root": None, "files": [], "name": "x"})["root"] is None


def test_all_random_generators_take_the_largest_seed() -> None:
    from vidssl.augment.counterfactual import frame_order
    from vidssl.data.loader import Order
    from vidssl.engine import distributed
    from vidssl.evaluation.tsne import tsne

    largest = 2**32 - 1
    assert check_value(largest, Seed, "seed") == []
    state = torch.get_rng_state()
    distributed.seed_step(largest, 10**9)
    torch.set_rng_state(state)
    assert sorted(frame_order(8, largest, 10**6).tolist()) == list(range(8))
    order = Order(8, 4, seed=largest, training=True)
    assert sum(map(len, order)) == 8
    tsne(torch.rand(8, 4), perplexity=2.0, seed=largest)
