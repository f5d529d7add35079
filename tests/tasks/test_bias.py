from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests.conftest import DATA, LINEAR, PRETRAIN, launch, make_video, read_json
from tests.engine.test_official import entries, wrapped
from vidssl.evaluation.bias import CHANGES, SCORED
from vidssl.report import conditions

BIAS = ("task=bias", "output=run")
ACCURACIES = {"top1", *(f"{name}_top1" for name in SCORED[1:])}
LIKENESSES = {f"{name}_likeness" for name in SCORED[1:]}


def figures(folder: Path, words: list[str]) -> dict[str, float]:
    done = launch(words, folder)
    assert done.status == 0, done.err
    return read_json(folder / "run/result.json")["bias"]


def test_every_change_that_is_scored_has_a_row() -> None:
    assert {change.name for change in conditions.CHANGES} == {"", "swap", *SCORED[1:]}
    assert set(SCORED) < set(CHANGES)


def test_a_chain_measures_its_own_classifier(small: list[str], tmp_path: Path) -> None:
    words = ["task=[pretrain,linear,bias]", "pretrain.epochs=1", *PRETRAIN, *LINEAR, "output=run", *small]
    done = launch(words, tmp_path)
    assert done.status == 0, done.err
    result = read_json(tmp_path / "run/result.json")
    found = result["bias"]
    assert next(iter(found)) == "motion_preference"
    assert found["top1"] == pytest.approx(result["linear"]["top1"]), "the same classifier on the same clips"
    assert found["swap_top1"] == pytest.approx(result["linear"]["swap_top1"])
    assert found.keys() >= ACCURACIES | LIKENESSES | {"masked_motion_preference", "swap_likeness", "chance"}
    assert "other background, rendered" in done.out
    assert "follows the" in done.out
    table = (tmp_path / "run/bias.md").read_text()
    assert f"| as filmed | {found['top1']:.1f} (" in table
    drawing = ElementTree.parse(tmp_path / "run/bias.svg")
    titles = [element.text for element in drawing.iter() if element.tag.endswith("title")]
    assert f"{found['motion_preference']:.2f}" in titles


@pytest.mark.slow
def test_figures_do_not_depend_on_the_batch_nor_on_ranks(small: list[str], tmp_path: Path) -> None:
    words = [*BIAS, *small, "checkpoint=none"]
    alone = figures(tmp_path, [*words, "bias.batch_size=5"])
    for size in (3, 12):  # with 12 there is one batch, and nothing to do for the second rank
        done = launch(
            [*words, f"bias.batch_size={size}", "devices=2", "accelerator=cpu", f"output=two{size}"], tmp_path
        )
        assert done.status == 0, done.err
        assert read_json(tmp_path / f"two{size}/result.json")["bias"] == pytest.approx(alone, abs=1e-4)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filmed")
    for split in ("train", "test"):
        for i in range(4):
            make_video(root / split / ("jump", "run")[i % 2] / f"{i}.mp4", 20, size=(48, 64))
    return root


SMALL = (
    *DATA[2:],
    "clip_frames=8",
    "frame_stride=1",
    "crop_size=32",
    "dataset=folder",
    "bias.clips=2",
    "bias.batch_size=3",
)


def test_any_videos_are_measured_with_masks_of_our_own(filmed: Path, tmp_path: Path) -> None:
    found = figures(tmp_path, [*BIAS, *SMALL, "backbone=tiny", "checkpoint=none", f"dataset.root={filmed}"])
    assert found.keys() >= ACCURACIES | LIKENESSES
    assert next(iter(found)) == "masked_motion_preference"
    assert "motion_preference" not in found
    assert found["chance"] == 50.0


def test_without_classes_features_are_compared_all_the_same(filmed: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for file in (filmed / split).rglob("*.mp4"):
            target = tmp_path / "plain" / f"{split}-{file.name}"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    lists = {"train_list": "train.txt", "test_list": "test.txt"}
    for name in lists.values():
        split = name.partition(".")[0]
        lines = [file.name for file in sorted((tmp_path / "plain").glob(f"{split}-*.mp4"))]
        (tmp_path / "plain" / name).write_text("\n".join(lines))
    words = [f"dataset.{key}={name}" for key, name in lists.items()]
    base = [word for word in SMALL if word != "dataset=folder"]
    found = figures(
        tmp_path,
        [
            *BIAS,
            *base,
            "dataset=list",
            *words,
            "backbone=tiny",
            "checkpoint=none",
            f"dataset.root={tmp_path / 'plain'}",
        ],
    )
    assert "top1" not in found
    assert found.keys() >= LIKENESSES | {"masked_motion_preference"}


@pytest.mark.slow
def test_a_released_file_is_measured(filmed: Path, tmp_path: Path) -> None:
    torch.save(wrapped("dclr/r2plus1d_18", entries("dclr/r2plus1d_18")), tmp_path / "released.pth.tar")
    words = [word for word in SMALL if not word.startswith("backbone")]
    found = figures(tmp_path, [*BIAS, *words, "checkpoint=released.pth.tar", f"dataset.root={filmed}"])
    assert found.keys() >= ACCURACIES | LIKENESSES


def test_what_cannot_be_measured_is_refused_before_work(filmed: Path, rendered: str, tmp_path: Path) -> None:
    words = ["task=bias", *SMALL, "backbone=tiny", "checkpoint=none", f"dataset.root={filmed}"]
    refused = launch([*words, "bias.mask=exact", "bias.classifier=checkpoint", "bias.beta=1"], tmp_path)
    assert refused.status == 2
    assert "bias.beta=1: must lie in (0, 1)" in refused.err
    refused = launch([*words, "bias.mask=exact", "bias.classifier=checkpoint"], tmp_path)
    assert refused.status == 2
    assert "bias.mask=exact: only rendered videos have exact masks, dataset=folder has not" in refused.err
    assert "task=bias needs a classifier" in refused.err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_known_ends_read_as_what_they_are(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A network trained with labels on repeated single frames can know the background alone, one trained on the videos
    has to know the motion, since on these data nothing else tells the class."""
    root = tmp_path_factory.mktemp("ends")
    found = {}
    for frames in ("still", "stride"):
        words = ["task=[finetune,bias]", "checkpoint=none", "finetune.epochs=10", "dataset.test_videos=160"]
        done = launch([*words, f"finetune.frames={frames}", f"dataset.root={root}", f"output={frames}"], tmp_path, 600)
        assert done.status == 0, done.err
        found[frames] = read_json(tmp_path / frames / "result.json")["bias"]
        assert ("follows the", {"still": "background", "stride": "motion"}[frames]) in [
            tuple(cell.strip() for cell in line.split("|")[1:3])
            for line in (tmp_path / frames / "bias.md").read_text().splitlines()
            if line.startswith("| follows")
        ]
    still, video = found["still"], found["stride"]
    for name in ("motion_preference", "masked_motion_preference"):
        assert still[f"{name}_high"] < 30
        assert video[f"{name}_low"] > 80
    assert still["frozen_likeness"] > 0.95
    assert video["frozen_likeness"] < 0.6
    assert still["other_background_likeness"] < 0.3
    assert video["other_background_likeness"] > 0.8
    assert video["top1"] > 70
    assert video["other_background_top1"] > video["top1"] - 20
    for name in ("frozen", "reversed", "no_foreground"):
        assert video[f"{name}_top1"] < 30
    assert still["top1"] < 30
