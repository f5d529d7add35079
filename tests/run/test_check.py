"""What cannot run is refused before any work, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
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
from vidssl.tasks import TASKS, Context, Task

TINY = {"name": "tiny", "width": 4}


def classifier(file: Path, classes: int, names: list[str] | None = None) -> Path:
    """What a probe on `classes` classes leaves; without names, what it left before states had them."""
    network = BACKBONES.build(TINY)
    learner = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    learner |= {"head.weight": torch.zeros(classes, network.out_channels), "head.bias": torch.zeros(classes)}
    config = {"backbone": TINY, "linear": {"normalize": "none"}}
    state = {"task": "linear", "config": config, "learner": learner, "backbone_prefix": "backbone."}
    save_state(file, state if names is None else {**state, "classes": names})
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


@dataclass(frozen=True)
class LastTask(Task):
    """A task that has to be the run's last."""

    def conflicts(self, context: Context) -> list[str]:
        return [] if len(context.before("last")) == len(context.tasks) - 1 else ["last: has to be the last task"]


def test_a_new_task_reports_its_own_conflicts_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._parts, "last", LastTask)
    config = composed("accelerator=cpu", "backbone.width=4", "task=pretrain")
    assert check({**config, "last": {}}) == []
    assert check({"last": {}, **config}) == ["last: has to be the last task"]


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


def test_a_classifier_of_as_many_other_classes_is_refused_and_one_of_more_is_not(tmp_path: Path) -> None:
    names = list(build.read_listing(composed()["dataset"], "test").classes)
    for words in (["task=test"], ["task=bias"], ["task=visualize", "visualize.kinds=[confusion]"]):
        lines = problems(*words, f"checkpoint={classifier(tmp_path / 'a.pt', 8, [f'class {n}' for n in range(8)])}")
        (line,) = [line for line in lines if line.startswith("checkpoint")]
        assert "its classifier tells 8 other classes (class 0, class 1, class 2, ...), not 8 of the 8 of" in line
        assert names[0] in line
        for known in (names[::-1], ["another", *names]):
            file = classifier(tmp_path / "b.pt", len(known), known)
            assert not [line for line in problems(*words, f"checkpoint={file}") if line.startswith("checkpoint")]


def test_a_classifier_that_does_not_fit_the_backbone_is_refused(tmp_path: Path) -> None:
    state = BACKBONES.build({"name": "mc3_18"}).state_dict()
    torch.save({**state, "fc.weight": torch.zeros(8, 2048), "fc.bias": torch.zeros(8)}, tmp_path / "a.pth")
    words = ["accelerator=cpu", "backbone=mc3_18", f"checkpoint={tmp_path}/a.pth", "crop_size=32", "clip_frames=8"]
    (line,) = check(composed(*words, "task=test"))
    assert "its classifier, weight [8, 2048] and bias [8], does not fit the 512 channels of backbone=mc3_18" in line
    assert check(composed(*words, "task=retrieve")) == [], "needs no classifier"


def test_weights_that_fit_nothing_are_refused_with_the_nearest_backbone(tmp_path: Path) -> None:
    state = BACKBONES.build({"name": "mc3_18"}).state_dict()
    state["extra"] = torch.zeros(1)
    torch.save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    (line,) = problems("task=retrieve", f"checkpoint={tmp_path}/a.pth")
    assert "does not fit backbone=mc3_18, the nearest: state dict: 120 tensors matched" in line
    assert "1 unexpected: extra" in line
    assert "layers.0" not in line


def test_a_single_video_of_which_batch_norm_gets_one_value_is_refused() -> None:
    words = ["accelerator=cpu", "task=[finetune,linear]", "checkpoint=none", "clip_frames=4", "crop_size=8"]
    config = composed(*words, "finetune.batch_size=1", "linear.batch_size=1")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BACKBONES.build(TINY)(torch.zeros(1, 3, 4, 8, 8))

    def with_finetune(**changes: int) -> list[str]:
        return check({**config, "finetune": {**config["finetune"], **changes}})

    def with_trainer(**changes: int | str) -> list[str]:
        return check({**config, "trainer": {**config["trainer"], **changes}})

    (line,) = with_finetune()
    assert line.startswith("finetune.batch_size=1: batch norm needs two values of each channel or more")
    assert "allowed: 2 or more" in line
    assert with_finetune(batch_size=2) == with_finetune(clip_frames=8) == with_finetune(crop_size=16) == []
    assert with_trainer(batch_norm="frozen") == []
    config["finetune"]["batch_size"] = config["linear"]["batch_size"] = 3
    (line,) = with_trainer(accumulate=3)
    assert "allowed: 6 or more" in line


def test_rates_that_no_video_can_choose_among_are_refused_before_work() -> None:
    words = ["task=linear", "checkpoint=none", "linear.batch_size=4", "linear.rates=[0.1,1.0]"]
    (line,) = problems(*words, "dataset.train_videos=4")
    assert "no class has two training videos" in line
    assert problems(*words, "dataset.train_videos=9") == []


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
    line, *_ = problems(*words)  # without training videos, the class of the test video is unknown, too
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
    assert line == f"{tmp_path}/test.txt: lists no videos"
