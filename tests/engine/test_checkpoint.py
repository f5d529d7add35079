from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vidssl.backbones.blocks import BACKBONES
from vidssl.engine.checkpoint import (
    keep_copy,
    load_backbone,
    load_state,
    load_weights,
    save_backbone,
    save_state,
    write_atomically,
)
from vidssl.registry import ConfigError

TINY = {"name": "tiny", "width": 4}


def state(**changes: object) -> dict:
    backbone = BACKBONES.build(TINY)
    learner = {f"online.backbone.{key}": value for key, value in backbone.state_dict().items()}
    learner["queue.keys"] = torch.zeros(3, 2)
    config = {"backbone": TINY, "pretrain": {}}
    return {"task": "pretrain", "config": config, "learner": learner, "backbone_prefix": "online.backbone.", **changes}


def test_a_state_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "a.pt", state())
    loaded = load_state(tmp_path / "a.pt")
    assert loaded["config"]["backbone"] == TINY
    assert set(loaded["learner"]) == set(state()["learner"])


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    save_state(file, state())
    before = file.read_bytes()

    def interrupted(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, interrupted)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_states_of_other_versions_and_other_things_are_refused(tmp_path: Path) -> None:
    torch.save({"format": 99, "learner": {}}, tmp_path / "future.pt")
    for load in (load_state, load_weights):
        with pytest.raises(ConfigError, match=r"format 99, this version reads 1.*backbone\.safetensors"):
            load(tmp_path / "future.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "stranger.pt")
    with pytest.raises(ConfigError, match="not a training state"):
        load_state(tmp_path / "stranger.pt")


def test_a_kept_state_stays_when_the_state_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"ten")
    keep_copy(tmp_path / "last.pt", tmp_path / "epoch-10.pt")
    write_atomically(tmp_path / "last.pt", lambda file: file.write_bytes(b"eleven"))
    assert (tmp_path / "epoch-10.pt").read_bytes() == b"ten"
    assert sorted(os.listdir(tmp_path)) == ["epoch-10.pt", "last.pt"]


def test_nothing_of_others_is_executed(tmp_path: Path) -> None:

    class Evil:
        def __reduce__(self):
            return os.system, ("touch executed",)

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="cannot be read without executing code"):
        load_weights(tmp_path / "evil.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:100])
    with pytest.raises(ConfigError, match="damaged"):
        load_weights(tmp_path / "cut.pt")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="no state_dict of tensors"):
        load_weights(tmp_path / "other.pt")
    assert not Path("executed").exists()
    with pytest.raises(ConfigError, match="no such file"):
        load_weights(tmp_path / "nowhere.pt")


def test_a_folder_without_a_last_state_names_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no last.pt in this folder; give"):
        load_weights(tmp_path)
    (tmp_path / "last.pt").mkdir()
    (tmp_path / "epoch-3.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no last.pt in this folder; it has .*epoch-3.pt"):
        load_weights(tmp_path)
    for name in ("a" * 5000, "nowhere/last.pt", "a\0b", "~nobody-of-this-name/last.pt"):
        with pytest.raises(ConfigError, match="no such file"):
            load_weights(name)


@pytest.mark.parametrize("note", ["resnet", '"r3d_18"', "[1]", "{}"])
def test_a_header_of_others_is_no_configuration(note: str, tmp_path: Path) -> None:
    tensors = {"stem.0.weight": torch.zeros(2), "fc.weight": torch.zeros(4, 2), "fc.bias": torch.zeros(4)}
    save_file({f"module.{name}": value for name, value in tensors.items()}, tmp_path / "a.pth", {"backbone": note})
    weights = load_weights(tmp_path / "a.pth")
    assert weights.section is None
    assert list(weights.backbone) == ["stem.0.weight"]
    assert weights.classifier["weight"].shape == (4, 2)


def test_a_state_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    save_state(tmp_path / "a.pt", state(classes=["up", "down"]))
    assert load_weights(tmp_path / "a.pt").classes == ("up", "down")
    save_state(tmp_path / "old.pt", state())
    assert load_weights(tmp_path / "old.pt").classes == ()


def test_a_backbone_comes_back_from_state_folder_and_safetensors(tmp_path: Path) -> None:
    saved = state()
    save_state(tmp_path / "last.pt", saved)
    source = BACKBONES.build(TINY)
    source.load_state_dict(load_weights(tmp_path / "last.pt").backbone)
    save_backbone(tmp_path / "backbone.safetensors", source, TINY)
    for given in (tmp_path / "last.pt", tmp_path, tmp_path / "backbone.safetensors"):
        weights = load_weights(given)
        assert weights.section == TINY
        target = BACKBONES.build(TINY)
        report = load_backbone(weights, target)
        assert report.matched == len(target.state_dict())
        for key, value in target.state_dict().items():
            assert torch.equal(value, saved["learner"][f"online.backbone.{key}"])
    assert load_weights(tmp_path / "last.pt").ignored == {"queue.keys": "queue"}


def test_weights_that_do_not_fit_are_never_loaded_silently(tmp_path: Path) -> None:
    saved = state()
    del saved["learner"]["online.backbone.layers.0.weight"]
    saved["learner"]["online.backbone.extra"] = torch.zeros(1)
    save_state(tmp_path / "a.pt", saved)
    with pytest.raises(ConfigError, match=r"1 missing: layers.0.weight; 1 unexpected: extra"):
        load_backbone(load_weights(tmp_path / "a.pt"), BACKBONES.build(TINY))
    with pytest.raises(ConfigError, match="other shape"):
        save_state(tmp_path / "b.pt", state())
        load_backbone(load_weights(tmp_path / "b.pt"), BACKBONES.build({"name": "tiny", "width": 8}))


def test_states_of_earlier_versions_name_the_key_encoder_as_it_is_named_now(tmp_path: Path) -> None:
    save_state(tmp_path / "last.pt", {"learner": {"twin.network.a": torch.ones(1), "online.a": torch.zeros(1)}})
    assert list(load_state(tmp_path / "last.pt")["learner"]) == ["key_encoder.network.a", "online.a"]
