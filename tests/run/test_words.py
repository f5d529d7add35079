"""What is typed is what the run gets, whatever letters a path has."""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from omegaconf import OmegaConf

from tests.conftest import HOME, PRETRAIN, composed, launch, read_json
from vidssl.data.sources import SOURCES
from vidssl.engine.records import DONE, WRONG, flat
from vidssl.registry import ConfigError, OnDisk, Registry, expand_home, schema
from vidssl.run.check import RunOptions
from vidssl.run.command import _choices, _compose, _options, expand, explain, prepare_sweep, register_resolvers
from vidssl.run.words import PATHS, globs_in_full, parsed, paths_as_typed
from vidssl.tasks import TASKS

ODD = (
    "IN/epoch=3-step=1.pt", "R&D #1 (日本) a=b", "~/ucf101", "~root/x", "runs/übung", "a[1]", "[a]", "{a}", "a{1}",
    "(a", "a;b", "a!b", "a,b", "x y", " x ", "it's", 'say "x"', """both ' and \"""", "back\\slash", "end\\", "2024",
    "007", "1e3", "1_000", "true", "nan", "choice(a)", "glob(*)", "a:b", "a@b", "$HOME", "%41", "a\tb", "`x`", "*?",
    "<a",
)  # fmt: skip


def started(*words: str) -> dict[str, Any]:
    """The configuration that a run gets."""
    return composed(*expand(paths_as_typed(list(words)), HOME))


@pytest.mark.parametrize("path", ODD)
def test_a_path_is_taken_as_it_is_typed(path: str) -> None:
    for key in ("output", "+dataset.root", "hydra.sweep.subdir"):
        assert parsed(paths_as_typed([f"{key}={path}"])[0]).value() == (expand_home(path) if "hydra" in key else path)


def test_the_composed_configuration_has_the_paths_as_typed() -> None:
    """Those for which Hydra's reading and OmegaConf's might differ."""
    keys = ("output", "checkpoint", "dataset.root", "data.index_folder", "data.cache_folder", "report.runs")
    for paths in (
        ("a=b #1 (é)", "~/x", "2024", "[a]", "$HOME/{x}", "it's"),
        ('say "x"', "end\\", "true", "a,b", " x", "1e3"),
    ):
        words = ["task=report", *(f"{key}={path}" for key, path in zip(keys, paths, strict=True))]
        config = flat(started(*words))
        assert tuple(config[key] for key in keys) == paths


def test_what_hydra_gives_a_meaning_keeps_it() -> None:
    config = started("seed=3", "output=OUT/s=${seed} #1", "checkpoint=null", 'data.index_folder="a=b"')
    assert (config["output"], config["checkpoint"], config["data"]["index_folder"]) == ("OUT/s=3 #1", None, "a=b")
    for word in (r"checkpoint=epoch\=3.pt", "~dataset.root", "~output=a=b", "seed=3", "trainer.x=a=b", "-m"):
        assert paths_as_typed([word]) == [word]
    assert parsed(r"checkpoint=epoch\=3.pt").value() == "epoch=3.pt", "as Hydra's manual says"
    assert parsed(paths_as_typed(["bench.files=[a=1.mp4,b (2).mp4]"])[0]).value() == ["a=1.mp4", "b (2).mp4"]


@pytest.mark.parametrize(
    ("value", "runs"),
    [
        ("a=1.pt,b=2.pt", ["a=1.pt", "b=2.pt"]),
        ("choice(~/a, übung)", ["~/a", "übung"]),
        ("2024,2025", ["2024", "2025"]),
        ("'a=1',\"b,2\"", ["a=1", "b,2"]),
        ("x[1,2].pt,y(1,2).pt", ["x[1,2].pt", "y(1,2).pt"]),
        ("${seed},it's", ["${seed}", "it's"]),
        ("there,too", ["there,too"]),
        ("a=b", ["a=b"]),
    ],
)
def test_commas_separate_the_paths_of_many_runs(
    value: str, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there,too").touch()  # what exists is one path
    override = parsed(paths_as_typed([f"checkpoint={value}", "-m"])[0])
    words = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
    assert [parsed(f"checkpoint={word}").value() for word in words] == runs


@pytest.mark.parametrize("text", [text for text in ODD if text not in ("a\tb", "glob(*)")])
def test_what_cannot_be_read_is_answered_with_the_words_to_type(text: str) -> None:
    problem = parsed(f"launcher.partition={text}")
    if isinstance(problem, str):
        assert "\n" not in problem
        typed = shlex.split(problem.partition(" as it is type ")[2].partition(", for a list")[0])
        assert parsed(typed[0]).value() == text


def test_a_word_without_a_key_is_reported() -> None:
    assert "KEY=VALUE" in parsed("=3")
    assert "is no key" in parsed("a b=c d(")
    assert len(parsed("seed=" + "1" * 5000)) < 300


def test_glob_chooses_among_the_names_of_a_group() -> None:
    def expanded(word: str) -> str:
        return globs_in_full([word], lambda group: _options(HOME, group))[0]

    assert expanded("method=glob(be*)") == "method=be,be_pretext,be_triplet"
    assert expanded("method=glob(*,exclude=[be*,f*])") == "method=dclr,moco", "no parts of others, such as _contrast"
    assert expanded("backbone=glob([tiny*,c3d])") == "backbone=c3d,tiny,tiny_r3d"
    assert expanded("+experiment=glob(be_k400*)") == "+experiment=be_k400_i3d"
    with pytest.raises(ConfigError, match="matches none of be, be_pretext"):
        expanded("method=glob(x*)")
    with pytest.raises(ConfigError, match="seed is none"):
        expanded("seed=glob(1*)")


def test_every_key_that_is_a_path_is_known_without_importing_its_part() -> None:
    parts = [RunOptions, *(SOURCES.get(name) for name in SOURCES.names()), *(TASKS.get(name) for name in TASKS.names())]
    assert {name for part in parts for name in _paths(part)} == PATHS


def _paths(part: Any) -> set[str]:
    """Names of a part's options that are paths, and those within its sections."""
    names = set()
    for name, annotation in schema(part).items():
        for each in _leaves(annotation):
            if isinstance(each, OnDisk):
                names.add(name)
            elif isinstance(each, Registry):
                names |= {path for known in each.names() for path in _paths(each.get(known))}
            elif hasattr(each, "__dataclass_fields__"):
                names |= _paths(each)
    return names


def _leaves(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return list(get_args(annotation))
    return [leaf for inner in get_args(annotation) for leaf in _leaves(inner)] or [annotation]


# ---------------------------------------------------------------------------------------------------------------------
# Sweeps


@pytest.fixture
def resolvers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDSSL_HOME", str(HOME))
    register_resolvers()


def sweep(*words: str) -> list[str]:
    return prepare_sweep(expand(paths_as_typed([*words, "-m"]), HOME), HOME)


def folders(words: list[str]) -> tuple[str, str]:
    """The sweep's folder and that of its run with seed 1, below it."""
    settings = [word for word in words if word != "-m" and not word.startswith("seed=")]
    hydra = _compose([*settings, "seed=1", "hydra.job.num=7"], HOME, hydra=True).hydra
    return hydra.sweep.dir, hydra.sweep.subdir


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["output=OUT/s${seed}"], ("OUT", "s1")),
        (["output=~/my runs (é)/${method.name}=${seed}"], (os.path.expanduser("~/my runs (é)"), "fame=1")),
        (["output=OUT/s${seed}", "method.beta=0.4,0.5"], ("OUT", "s1/7")),  # two runs of a seed stay apart
        (["output=OUT/s${seed}", "hydra.sweep.subdir=b${method.beta}"], ("OUT", "s1/b0.5")),
        (["output=OUT"], ("OUT", "7")),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("resolvers")
def test_a_sweep_has_one_folder_with_its_runs_in_it(typed: list[str], expected: tuple[str, str]) -> None:
    assert folders(sweep("seed=1,2", *typed)) == expected


@pytest.mark.parametrize("word", ["output=s${seed}", "output=/${seed}", "hydra.sweep.dir=OUT/${seed}"])
@pytest.mark.usefixtures("resolvers")
def test_a_sweep_without_a_folder_of_its_own_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.subdir=s\$\{seed\}") as refused:
        sweep("seed=1,2", word)
    assert len(refused.value.problems) == 1


@pytest.mark.usefixtures("resolvers")
def test_an_interval_needs_an_optimizing_sweeper() -> None:
    with pytest.raises(ConfigError, match="needs an optimizing sweeper, such as hydra/sweeper=optuna"):
        sweep("method.beta=interval(0.1,0.5)")


def test_environment_variables_that_are_not_set_are_named() -> None:
    with pytest.raises(ConfigError) as refused:
        started("dataset=folder", "dataset.root=${oc.env:NOT_SET}")
    assert refused.value.problems == ["dataset.root: Environment variable 'NOT_SET' not found"]


@pytest.mark.usefixtures("resolvers")
def test_of_an_interval_both_ends_are_checked() -> None:
    words = ["hydra/sweeper=optuna", "seed=int(interval(1,5))", "+x=tag(log,interval(0.1,2))", "crop_size=32,64"]
    assert _choices(words, {"method.beta": "interval(0.1,3)", "flip": "choice(0,1)"}, HOME, discrete=False) == {
        "method.beta": ["method.beta=0.1", "method.beta=3.0"],
        "flip": ["flip=0", "flip=1"],
        "seed": ["seed=1", "seed=5"],
        "+x": ["+x=0.1", "+x=2.0"],
        "crop_size": ["crop_size=32", "crop_size=64"],
    }


OPTUNA = find_spec("hydra_plugins") is not None and find_spec("hydra_plugins.hydra_optuna_sweeper") is not None


@pytest.mark.usefixtures("resolvers")
@pytest.mark.skipif(OPTUNA, reason="hydra-optuna-sweeper is installed")
def test_a_sweeper_that_is_not_installed_is_answered_with_its_package() -> None:
    words = ["-m", "hydra/sweeper=optuna", "method.beta=interval(0.1,0.5)"]
    message = "hydra/sweeper=optuna: is in a package of its own; pip install hydra-optuna-sweeper"
    assert explain(words, HOME) == [message]
    assert "Did you mean optuna?" in explain(["hydra/sweeper=optunna", "-m"], HOME)[0]


@pytest.mark.slow
@pytest.mark.skipif(not OPTUNA, reason="needs hydra-optuna-sweeper")
def test_an_optimizing_sweeper_gets_the_score_of_each_run(small: list[str], tmp_path: Path) -> None:
    words = [
        "-m",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.direction=minimize",
        "output=found",
    ]
    words += ["task=pretrain", "score=pretrain.loss", "pretrain.max_steps=1", *PRETRAIN, *small]
    wrong = launch([*words, "method.contrast.temperature=interval(-0.1,0.3)"], tmp_path)
    assert wrong.status == WRONG
    assert "method.contrast.temperature=-0.1: must lie in" in wrong.err
    answer = launch([*words, "method.contrast.temperature=interval(0.05,0.3)"], tmp_path)
    assert answer.status == DONE, answer.err
    losses = [read_json(tmp_path / f"found/{job}/result.json")["pretrain"]["loss"] for job in (0, 1)]
    best = OmegaConf.load(tmp_path / "found/optimization_results.yaml")
    assert best.best_value == pytest.approx(min(losses))
    assert (tmp_path / "found/report.html").exists()
    unscored = [word.replace("=found", "=lost").replace("pretrain.loss", "pretrain.other") for word in words]
    answer = launch([*unscored, "method.contrast.temperature=interval(0.05,0.3)"], tmp_path)
    assert answer.status == WRONG
    assert answer.err.count("error: score=pretrain.other: no such figure; there are pretrain.") == 2
    assert "Traceback" not in answer.err
