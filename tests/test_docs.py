"""What the documentation says to do is done here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import DATA, HOME, PRETRAIN, make_video, read_json
from vidssl.backbones.blocks import BACKBONES
from vidssl.engine.checkpoint import save_backbone


def blocks(text: str) -> dict[str, str]:
    """path -> content of each fenced block that follows a line with its path."""
    return {path: content for path, _, content in re.findall(r"^`([\w/.]+)`\n\n```(\w+)\n(.*?)^```", text, re.M | re.S)}


def copied(folder: Path, page: str) -> dict[str, str]:
    """A copy of the repository in `folder` with the files that a page of docs/ shows: path -> content."""
    for part in ("vidssl", "conf", "sweeps"):
        shutil.copytree(HOME / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOME / "launch.py", folder)
    files = blocks((HOME / "docs" / page).read_text())
    for path, content in files.items():
        assert not (folder / path).exists()
        (folder / path).write_text(content)
    return files


def launched(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "launch.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_method_is_one_python_file_and_one_yaml(tmp_path: Path, rendered: str) -> None:
    """docs/adding-a-method.md, in a copy of the repository."""
    copy = tmp_path / "copy"
    assert sorted(copied(copy, "adding-a-method.md")) == ["conf/method/speed.yaml", "vidssl/methods/speed.py"]

    def speed(*words: str) -> subprocess.CompletedProcess:
        return launched(copy, "method=speed", *DATA, f"dataset.root={rendered}", *words)

    done = speed(*PRETRAIN, "task=[pretrain,knn]", "frame_stride=2", "pretrain.epochs=1", "output=run")
    assert done.returncode == 0, done.stderr
    result = read_json(copy / "run/result.json")
    assert "speed_top1" in result["pretrain"]
    assert "top1" in result["knn"]
    method = (copy / "vidssl/methods/speed.py").read_text()
    (copy / "vidssl/methods/speed.py").write_text(method.replace("self.augment", "self.color"))
    assert speed(*PRETRAIN, "task=pretrain", "frame_stride=2", "pretrain.max_steps=1", "output=other").returncode == 0
    wrong = speed("method.hiden=3", "pretrain.batch_size=8")
    assert wrong.returncode == 2
    assert "Did you mean method.hidden?" in wrong.stderr
    assert "must lie in [1, inf)" in speed("method.hidden=0", *PRETRAIN).stderr


def test_every_recipe_stands_in_the_table_of_reproductions() -> None:
    table = re.findall(r"^\| `(\w+)` \|", (HOME / "docs/reproduction.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(f.stem for f in (HOME / "conf/experiment").glob("[!_]*.yaml"))


def test_every_recipe_names_its_source_and_what_was_published() -> None:
    for file in (HOME / "conf/experiment").glob("[!_]*.yaml"):
        text = file.read_text()
        for word in (f"experiment={file.stem} ", "# Source: ", "Original hardware: ", "Published: ", "Changed: "):
            assert word in text, f"{file.name}: {word}"


@pytest.mark.slow
def test_a_backbone_a_data_set_and_a_metric_are_one_python_file_and_one_yaml_each(tmp_path: Path) -> None:
    """docs/extending.md, in a copy of the repository."""
    copy = tmp_path / "copy"
    files = copied(copy, "extending.md")
    assert sorted(file.split("/")[1] for file in files) == [
        "backbone", "backbones", "data", "dataset", "task", "tasks",
    ]  # fmt: skip
    for name in ("left", "right"):
        for number in range(8):
            make_video(tmp_path / "videos" / f"{name}-{number}.mp4", frames=10)
    data = ("dataset=pairs", f"dataset.root={tmp_path}/videos", "recipe=demo", "data.workers=0", "accelerator=cpu")
    words = (*data, "backbone=plain", "pretrain.batch_size=4", "pretrain.max_steps=2")
    done = launched(copy, *words, "task=[pretrain,retrieve,uniformity]", "output=run")
    assert done.returncode == 0, done.stderr
    result = read_json(copy / "run/result.json")
    assert -10 < result["uniformity"]["uniformity"] <= 0
    assert "R@1" in result["retrieve"]
    plan = launched(copy, *data, "task=uniformity", f"checkpoint={copy}/run", "check_only=true")
    assert plan.returncode == 0, plan.stderr
    assert "backbone=plain" in plan.stdout
    wrong = launched(copy, *data, "task=uniformity", "checkpoint=none", "uniformity.t=0", "backbone=plain")
    assert wrong.returncode == 2
    assert "uniformity.t=0: must lie in (0, inf)" in wrong.stderr


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (HOME / page).read_text(), re.M | re.S)


def test_the_readmes_python_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, step = python_blocks("README.md")
    section = {"name": "tiny", "width": 4}
    (tmp_path / "runs").mkdir()
    backbone = BACKBONES.build(section)
    save_backbone(tmp_path / "runs/x", backbone, section, {"clip_frames": 8, "crop_size": 32})
    make_video(tmp_path / "video.mp4", 30)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(features, names)
    assert names["features"].shape == (backbone.out_channels,)
    torch.manual_seed(0)
    exec(step, names)
    assert all(p.grad is None for p in names["method"].key_encoder.parameters())
    assert any(p.grad.abs().max() > 0 for p in names["method"].backbone.parameters())
