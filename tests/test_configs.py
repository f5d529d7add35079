"""Every YAML composes, and every file in conf/ is reached by something that tests compose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose

from tests.conftest import HOME, composed, in_conf
from vidssl.registry import Registry
from vidssl.run.check import LAUNCHERS, check, task_names


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (HOME / "conf" / group).glob("*.yaml") if not file.stem.startswith("_"))


def problems_without_data(config: dict) -> list[str]:
    """Problems apart from data and checkpoints that are not here."""
    return [p for p in check(config) if not p.startswith(("dataset.", "checkpoint", "report.runs"))]


CHOICES = [
    (group, name)
    for group in ("method", "backbone", "dataset", "task", "trainer", "launcher", "recipe", "protocol", "experiment")
    for name in options(group)
]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_and_is_sound(group: str, name: str) -> None:
    words = [f"{group}={name}"]
    if group == "experiment" or (group == "dataset" and not name.startswith("synthetic")):
        words.append(f"dataset.root={HOME}")  # holds none of these data sets, which is said, but all else is checked
    if group == "backbone":
        words += ["clip_frames=16", "crop_size=64"]
    if name == "slurm":
        words.append("check_only=true")  # a plan needs no cluster
    config = composed(*words)
    assert problems_without_data(config) == []
    if group == "experiment":
        release = {"moco": "fame"}.get(name.split("_")[0], name.split("_")[0])
        evaluates = {"finetune", "linear", "retrieve", "test"} & config.keys()
        assert config["protocol"] == (release if evaluates else "ours")
        assert config["recipe"] in ("paper", "paper_small")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", options("dataset"))
@pytest.mark.parametrize("task", options("task"))
def test_every_task_goes_with_every_data_set(dataset: str, task: str) -> None:
    config = composed(f"dataset={dataset}", f"task={task}")
    assert task_names(config) == [task]
    assert problems_without_data(config) == []


@pytest.mark.parametrize("protocol", options("protocol"))
def test_every_protocol_goes_with_every_task_that_evaluates(protocol: str) -> None:
    tasks = "task=[finetune,linear,knn,retrieve,test,extract]"
    config = composed(f"protocol={protocol}", tasks, "dataset=ucf101", f"dataset.root={HOME}")
    assert config["protocol"] == protocol
    assert problems_without_data(config) == []


def test_what_is_typed_wins_over_a_protocol() -> None:
    config = composed(
        "protocol=fame", "task=[linear,finetune]", "linear.epochs=3", "augmentation@linear.augmentation=eval",
        "optimizer@finetune.optimizer=adamw",
    )  # fmt: skip
    assert (config["linear"]["epochs"], config["linear"]["optimizer"]["lr"]) == (3, 30.0)
    assert config["linear"]["augmentation"]["crop"]["name"] == "center"
    assert config["finetune"]["optimizer"]["name"] == "adamw"


@pytest.mark.parametrize("group", ["optimizer", "schedule", "augmentation"])
def test_every_part_of_a_task_goes_with_every_training_task(group: str) -> None:
    tasks = ("pretrain", "finetune", "linear")
    for name in options(group):
        words = [f"{group}@{task}.{group}={name}" for task in tasks]
        assert problems_without_data(composed(f"task=[{','.join(tasks)}]", "dataset=folder", *words)) == []


def test_every_registered_part_has_a_file_of_its_name() -> None:
    from vidssl.backbones.blocks import BACKBONES
    from vidssl.data.sources import SOURCES
    from vidssl.engine.optim import SCHEDULES
    from vidssl.methods.contrast import METHODS
    from vidssl.tasks import TASKS

    rooms: dict[str, Registry] = {
        "backbone": BACKBONES, "dataset": SOURCES, "method": METHODS, "task": TASKS, "schedule": SCHEDULES,
        "launcher": LAUNCHERS,
    }  # fmt: skip
    for group, registry in rooms.items():
        assert set(registry.names()) <= set(options(group)), group


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((HOME / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_composes_and_each_of_its_arms_is_sound(file: Path) -> None:
    with in_conf():
        config = compose("config", [f"sweeps={file.stem}"], return_hydra_config=True)
    params = config.hydra.sweeper.params
    assert config.hydra.mode.name == "MULTIRUN"
    for key, values in params.items():
        for value in str(values).split(","):
            assert problems_without_data(composed(f"sweeps={file.stem}", f"{key}={value}")) == []


def test_recipes_follow_the_data_set_and_can_be_chosen() -> None:
    assert composed("method=moco")["method"]["contrast"]["queue"] == 0
    assert composed("dataset=ucf101")["method"]["contrast"]["queue"] == 2048
    assert composed("dataset=kinetics400")["method"]["contrast"]["queue"] == 65536
    assert composed("dataset=kinetics400")["pretrain"]["optimizer"] == {
        "name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4,
    }  # fmt: skip
    assert composed("recipe=paper")["method"]["contrast"]["momentum"] == 0.999
    assert composed("recipe=paper")["crop_size"] == 112
    assert composed("optimizer@pretrain.optimizer=sgd")["pretrain"]["optimizer"]["lr"] == 0.01


def test_run_wide_clip_keys_reach_every_task_unless_it_sets_its_own() -> None:
    config = composed("clip_frames=16", "crop_size=64", "linear.crop_size=32", "task=[pretrain,linear,knn]")
    assert [config[task]["clip_frames"] for task in ("pretrain", "linear", "knn")] == [16, 16, 16]
    assert [config[task]["crop_size"] for task in ("pretrain", "linear", "knn")] == [64, 32, 64]


def test_tasks_run_in_the_order_in_which_they_are_named() -> None:
    assert task_names(composed("task=[retrieve,pretrain,linear]")) == ["retrieve", "pretrain", "linear"]


def test_a_data_set_whose_classes_have_sides_is_not_mirrored() -> None:
    assert composed()["pretrain"]["augmentation"]["crop"]["flip"] == 0.0
    assert composed("dataset=synthetic_scenes")["pretrain"]["augmentation"]["crop"]["flip"] == 0.5


def test_the_comments_of_config_yaml_list_the_choices_of_each_group() -> None:
    lines = (HOME / "conf/config.yaml").read_text().splitlines()
    for group in ("backbone", "method", "protocol", "recipe", "dataset"):
        (comment,) = [line.partition("#")[2] for line in lines if line.startswith(f"  - {group}: ")]
        assert sorted(re.split("[:;]", comment)[0].split()) == options(group), group
    above = lines[next(i for i, line in enumerate(lines) if line.startswith("  - task: ")) - 1]
    assert sorted(above.removeprefix("  #").split(",")[0].split()) == options("task")
