"""vidssl.load: a network outside of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import vidssl
from tests.conftest import PRETRAIN, launch, make_video
from vidssl.backbones.blocks import BACKBONES
from vidssl.data.video import VideoError
from vidssl.engine.checkpoint import save_backbone
from vidssl.registry import ConfigError
from vidssl.run.command import DONE

TINY = {"name": "tiny", "width": 4}


def test_a_file_says_the_format_of_its_clips(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES.build(TINY).eval()
    clip = {"clip_frames": 8, "frame_stride": 3, "crop_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    save_backbone(tmp_path / "backbone.safetensors", backbone, TINY, clip)
    net = vidssl.load(tmp_path / "backbone.safetensors")
    assert (net.clip_frames, net.frame_stride, net.crop_size) == (8, 3, 32)
    frames = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    expected = backbone((frames / 255 - 0.5) / 0.25).mean(dim=(2, 3, 4))
    torch.testing.assert_close(net(frames), expected)
    torch.testing.assert_close(net(frames / 255), expected)
    assert vidssl.load(tmp_path / "backbone.safetensors", crop_size=64).crop_size == 64
    with pytest.raises(ConfigError, match=r"^crop: no field of a clip's format"):
        vidssl.load(tmp_path / "backbone.safetensors", crop=64)


def test_features_of_a_video_and_of_one_that_cannot_be_read(tmp_path: Path) -> None:
    save_backbone(tmp_path / "b.safetensors", BACKBONES.build(TINY), TINY, {"clip_frames": 8, "crop_size": 32})
    net = vidssl.load(tmp_path / "b.safetensors")
    features = net.features(make_video(tmp_path / "v.mp4", 30, size=(48, 64)))
    assert features.shape == (net.backbone.out_channels,)
    assert features.isfinite().all()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        net.features(tmp_path / "broken.mp4")


@pytest.mark.slow
def test_a_runs_folder_gives_the_features_that_extract_writes(small: list[str], tmp_path: Path) -> None:
    words = [*small, *PRETRAIN, "task=[pretrain,extract]", "pretrain.max_steps=2", "extract.clips=10"]
    words += ["augmentation@extract.augmentation=eval", "output=run"]
    answer = launch(words, tmp_path)
    assert answer.status == DONE, answer.err
    with safe_open(tmp_path / "run/features-test.safetensors", framework="pt") as file:
        paths = json.loads(file.metadata()["paths"])
        root = json.loads(file.metadata()["dataset"])["root"]
        written = file.get_tensor("features")
    for path in (tmp_path / "run", tmp_path / "run/backbone.safetensors"):
        net = vidssl.load(path)
        video = Path(root) / paths[0]
        torch.testing.assert_close(net.features(video), written[0], rtol=1e-4, atol=1e-5)
