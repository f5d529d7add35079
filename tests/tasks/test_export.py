from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from tests.conftest import LINEAR, launch, read_json
from tests.engine.test_official import entries, wrapped
from vidssl.backbones.blocks import BACKBONES
from vidssl.tasks.export import Export, load_program, save_program


def test_a_chain_ends_in_files_that_answer_like_the_network(small: list[str], tmp_path: Path) -> None:
    words = [*small, *LINEAR, "linear.epochs=1", "checkpoint=none", "output=run"]
    done = launch(["task=[linear,export]", *words], tmp_path)
    assert done.status == 0, done.err
    figures = read_json(tmp_path / "run/result.json")["export"]
    assert figures["largest_difference"] < 1e-5
    assert {"backbone_safetensors_megabytes", "backbone_pt2_megabytes", "classifier_pt2_megabytes"} <= set(figures)
    for name in ("backbone.safetensors", "backbone.pt2", "classifier.pt2"):
        assert f"{name}: " in done.out
    with safe_open(tmp_path / "run/backbone.safetensors", "pt") as file:
        assert json.loads(file.metadata()["backbone"]) == {"name": "tiny", "width": 4}
    clips = torch.randn(5, 3, 8, 32, 32)
    assert load_program(tmp_path / "run/classifier.pt2")(clips).shape == (5, 8)
    about = {"vidssl.json": ""}
    torch.export.load(tmp_path / "run/backbone.pt2", extra_files=about)
    assert json.loads(about["vidssl.json"])["clip"] == [3, 8, 32, 32]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_chain_that_trained_on_a_gpu_is_exported(small: list[str], tmp_path: Path) -> None:
    words = [*small, *LINEAR, "linear.epochs=1", "checkpoint=none", "output=run", "accelerator=cuda"]
    for task in ("[linear,export]", "[finetune,export]"):
        done = launch(
            [f"task={task}", "finetune.epochs=1", "finetune.batch_size=8", *words, f"output={task}"], tmp_path
        )
        assert done.status == 0, done.err
        assert read_json(tmp_path / task / "result.json")["export"]["largest_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s3dg"])
def test_a_program_takes_any_number_of_clips(name: str, tmp_path: Path) -> None:
    network = BACKBONES.build({"name": name}).eval()
    time, space = network.strides
    clips = torch.randn(3, 3, time, space, space)
    with torch.no_grad():
        save_program(tmp_path / "a.pt2", network, clips[:2], {})
        program = load_program(tmp_path / "a.pt2")
        for count in (1, 3):
            torch.testing.assert_close(program(clips[:count]), network(clips[:count]))


def test_a_released_checkpoint_says_its_backbone(rendered: str, tmp_path: Path) -> None:
    """DCLR's: one block a stage, under the name of a network that has two."""
    torch.save(wrapped("dclr/r2plus1d_18", entries("dclr/r2plus1d_18")), tmp_path / "released.pth.tar")
    words = ["task=export", "checkpoint=released.pth.tar", "clip_frames=8", "crop_size=16", f"dataset.root={rendered}"]
    refused = launch([*words, "backbone=r2plus1d18"], tmp_path)
    assert refused.status == 2
    assert "holds another backbone than r2plus1d18; add backbone=r2plus1d10\n" in refused.err
    done = launch([*words, "output=run"], tmp_path)
    assert done.status == 0, done.err
    assert "left aside: 8 queue, 20 projection head" in done.out
    assert read_json(tmp_path / "run/result.json")["export"]["parameters"] == 12487005
    assert not (tmp_path / "run/classifier.pt2").exists()


def test_sizes_that_the_backbone_cannot_take_are_told_before(small: list[str], tmp_path: Path) -> None:
    done = launch(["task=export", "checkpoint=none", "clip_frames=6", "crop_size=33", *small], tmp_path)
    assert done.status == 2
    assert "clip_frames=6: backbone=tiny needs a multiple of 4" in done.err
    assert "crop_size=33" in done.err
    done = launch(["task=export", *small], tmp_path)
    assert done.status == 2
    assert "task=export starts from one" in done.err


@pytest.mark.parametrize("found", [2.0, torch.nan])
def test_a_file_that_answers_differently_is_removed_and_told(found: float, tmp_path: Path) -> None:
    file = tmp_path / "backbone.pt2"
    file.write_bytes(b"x")
    run = SimpleNamespace(log=SimpleNamespace(say=lambda line: None))
    with pytest.raises(RuntimeError, match="answers differ by"):
        Export.compare(None, run, {"largest_difference": 0.0}, file, torch.tensor([found]), torch.tensor([1.0]))
    assert not file.exists()
