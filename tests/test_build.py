"""A classifier from a file on the classes of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.build import Run
from vidssl.engine.checkpoint import save_state
from vidssl.engine.log import Log
from vidssl.registry import ConfigError

TINY = {"name": "tiny", "width": 4}
KNOWN = ("down", "left", "right", "up")


def run_on(folder: Path, classes: Sequence[str] | None = KNOWN, *, rows: int = 4, device: str = "cpu") -> Run:
    """A run whose checkpoint is a fine-tuned network; row i of its layer says i, whatever the clip."""
    network = BACKBONES.build(TINY)
    learner = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    learner |= {"head.weight": torch.zeros(rows, network.out_channels), "head.bias": torch.arange(float(rows))}
    config = {"backbone": TINY, "finetune": {}, "dataset": {"name": "folder"}}
    state = {"task": "finetune", "config": config, "learner": learner, "backbone_prefix": "backbone."}
    save_state(folder / "last.pt", state if classes is None else {**state, "classes": list(classes)})
    return Run(config, folder, Log(folder), torch.device(device), str(folder / "last.pt"))


def answers(run: Run, classes: Sequence[str] | None) -> list[float]:
    with torch.no_grad():
        return build.classifier(run, BACKBONES.build(TINY), classes).logits(torch.zeros(1, 3, 4, 8, 8))[0].tolist()


@pytest.mark.parametrize(
    ("known", "classes", "rows", "told"),
    [
        (KNOWN, KNOWN, [0, 1, 2, 3], ""),
        (KNOWN, ("Down", "LEFT", "right", "up"), [0, 1, 2, 3], ""),
        (KNOWN, ("up", "right", "left", "down"), [3, 2, 1, 0], "has the classes in another order; they are put"),
        (KNOWN, ("up", "left"), [3, 1], "tells 4 classes; the 2 of dataset=folder are taken by name"),
        (("0", "1", "2", "3"), ("0", "3", "1", "2"), [0, 3, 1, 2], ""),
        (None, ("a", "b", "c", "d"), [0, 1, 2, 3], "the classifier's classes have no names"),
        (("0", "1", "2", "3"), ("a", "b", "c", "d"), [0, 1, 2, 3], "the classifier's classes have no names"),
        (KNOWN, ("0", "1", "2", "3"), [0, 1, 2, 3], "dataset=folder's classes have no names"),
        (KNOWN, None, [0, 1, 2, 3], ""),
    ],
)  # fmt: skip
def test_answers_come_in_the_order_of_the_data_sets_classes(
    known: Sequence[str] | None, classes: Sequence[str] | None, rows: list[int], told: str, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    assert answers(run_on(tmp_path, known), classes) == rows
    said = capsys.readouterr().out
    assert len(said.splitlines()) == bool(told)
    assert told in said


@pytest.mark.parametrize(
    ("known", "classes", "told"),
    [
        (KNOWN, ("alpha", "beta", "gamma", "delta"),
         r"tells 4 other classes \(down, left, right, ...\), not 4 of the 4 of dataset=folder \(alpha, beta, gam.*\)"),
        (KNOWN, ("down", "left", "right", "forward"), r"not 1 of the 4 of dataset=folder \(forward\)"),
        (KNOWN, (*KNOWN, "still"), r"not 1 of the 5 of dataset=folder \(still\)"),
        (("0", "1", "2", "3"), ("0", "1", "2"), "tells 4 classes, dataset=folder has 3"),
        (None, ("a", "b"), "tells 4 classes, dataset=folder has 2"),
    ],
)  # fmt: skip
def test_a_classifier_of_other_classes_is_refused(
    known: Sequence[str] | None, classes: Sequence[str], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        answers(run_on(tmp_path, known), classes)


def test_a_classifier_leaves_the_network_on_its_device(tmp_path: Path) -> None:
    """Whatever device the run works on: export, for one, compares networks on the CPU."""
    network = BACKBONES.build(TINY)
    classifier = build.classifier(run_on(tmp_path, device="meta"), network)
    assert {parameter.device.type for parameter in (*network.parameters(), *classifier.parameters())} == {"cpu"}
