"""What cannot run is refused before any work, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import composed, launch, make_video
from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.data.manifest import Listing
from vidssl.engine.checkpoint import save_backbone, save_state
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS
from vidssl.registry import ConfigError
from vidssl.run.check import adopt_backbone, check
from vidssl.run.command import WRONG
from vidssl.tasks import TASKS

TINY = {"name": "tiny", "width": 4}


def classifier(file: Path, classes: int) -> Path:
    """What a probe on `classes` classes leaves."""
    network = BACKBONES.build(TINY)
    learner = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    learner |= {"head.weight": torch.zeros(classes, network.out_channels), "head.bias": torch.zeros(classes)}
    config = {"backbone": TINY, "linear": {"normalize": "none"}}
    save_state(file, {"task": "linear", "config": config, "learner": learner, "backbone_prefix": "backbone."})
    return file


def problems(*words: str) -> list[str]:
    return check(composed("accelerator=cpu", "backbone.width=4", *words))


class Reads(Learner):
    """A method whose constructor looks at a value."""

    def __init__(self, backbone: nn.Module, augment: nn.Module):
        super().__init__()
        self.backbone, self.scale = backbone, torch.ones(3).sum().item()


def test_a_method_whose_constructor_reads_values_is_answered_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS._parts, "reads", Reads)
    config = composed("accelerator=cpu", "backbone.width=4", "task=pretrain")
    config["method"] = {"name": "reads"}
    (line,) = check(config)
    assert line.startswith("method=reads: cannot be built without values of tensors (RuntimeError: ")
    assert "docs/adding-a-method.md" in line
    assert "\n" not in line


def test_a_classifier_of_other_classes_is_refused_by_every_task_that_starts_from_one(tmp_path: Path) -> None:
    file = classifier(tmp_path / "last.pt", 5)
    names = [name for name in TASKS.names() if TASKS.get(name).starts_from == "classifier"]
    assert "test" in names
    for name in names:
        if "test" in TASKS.get(name).splits:
            (line,) = [line for line in problems(f"task={name}", f"checkpoint={file}") if line.startswith("checkpoint")]
            for words in (str(file), "5 classes", "dataset=synthetic has 8", f"task={name}"):
                assert words in line
    assert problems("task=test", f"checkpoint={classifier(tmp_path / 'fits.pt', 8)}") == []
    assert problems("task=[linear,test]", f"checkpoint={file}") == [], "linear leaves one that fits"


def test_a_classifier_of_other_classes_ends_with_status_2_before_work(tmp_path: Path, small: list[str]) -> None:
    answer = launch([*small, "task=test", f"checkpoint={classifier(tmp_path / 'c.pt', 5)}", "output=run"], tmp_path)
    assert answer.status == WRONG
    assert "tells 5 classes" in answer.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["last.pt", "backbone.safetensors", "pretrained.pth.tar"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if file.suffix == ".safetensors":
        save_backbone(file, BACKBONES.build(TINY), TINY)
    else:
        classifier(file, 8)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>not found</html>"):
        file.write_bytes(damaged)
        (line,) = problems("task=linear", f"checkpoint={file}")
        assert line.startswith(f"checkpoint={file}: ")


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    save_backbone(tmp_path / "c3d.safetensors", BACKBONES.build({"name": "c3d"}), {"name": "c3d"})
    for task in ("linear", "knn", "retrieve", "finetune", "extract", "export"):
        (line,) = problems(f"task={task}", f"checkpoint={tmp_path}/c3d.safetensors")
        assert "holds another backbone than tiny; add backbone=c3d" in line


def test_a_protocol_that_depends_on_the_backbone_wants_it_named(tmp_path: Path) -> None:
    save_backbone(tmp_path / "c3d.safetensors", BACKBONES.build({"name": "c3d"}), {"name": "c3d"})
    words = [f"checkpoint={tmp_path}/c3d.safetensors", "task=linear"]
    with pytest.raises(ConfigError, match=r"^protocol=fame: .* add backbone=c3d|backbone=c3d, add that"):
        adopt_backbone(composed(*words, "protocol=fame"), [*words, "protocol=fame"])
    assert adopt_backbone(composed(*words), words)["backbone"] == {"name": "c3d"}
    named = [*words, "protocol=fame", "backbone=c3d"]
    assert adopt_backbone(composed(*named), named)["backbone"] == {"name": "c3d"}


def test_rates_that_are_trained_at_once_share_no_limit_of_gradients() -> None:
    words = ["task=linear", "checkpoint=none", "linear.rates=[0.1,1.0]"]
    (line,) = problems(*words, "trainer.clip_grad=1.0")
    assert line.startswith("trainer.clip_grad=1.0: limits the gradients of all linear.rates together")
    assert problems(*words) == problems("task=linear", "checkpoint=none", "trainer.clip_grad=1.0") == []


@pytest.mark.parametrize("empty", ["train", "test"])
def test_an_empty_split_is_refused(empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        (tmp_path / "data" / split / "run").mkdir(parents=True)
        if split != empty:
            make_video(tmp_path / "data" / split / "run/1.mp4", 5, size=(48, 64))
    words = ["task=knn", "checkpoint=none", "dataset=folder", f"dataset.root={tmp_path}/data", "recipe=demo"]
    (line,) = problems(*words)
    assert line.startswith(f"dataset.root={tmp_path}/data: no videos in {tmp_path}/data/{empty}")
    monkeypatch.setattr(build, "read_listing", lambda section, split: Listing(tmp_path, [], ["run"]))
    lines = problems(*words)  # of any source, also one that does not look itself
    assert [line for line in lines if f"the {empty} split of dataset=folder has no videos, task=knn needs some" in line]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_list_is_refused(content: str, tmp_path: Path) -> None:
    make_video(tmp_path / "1.mp4", 5, size=(48, 64))
    (tmp_path / "train.txt").write_text("1.mp4 0\n")
    (tmp_path / "test.txt").write_text(content)
    words = ["task=retrieve", "checkpoint=none", "dataset=list", f"dataset.root={tmp_path}", "recipe=demo"]
    (line,) = problems(*words, f"dataset.train_list={tmp_path}/train.txt", f"dataset.test_list={tmp_path}/test.txt")
    assert line == f"dataset.test_list={tmp_path}/test.txt: lists no videos; dataset.root={tmp_path}"
