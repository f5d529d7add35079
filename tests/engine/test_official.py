"""Released checkpoints, rebuilt from their key lists, load completely, and the loaded networks answer as recorded."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import GOLDEN, fill, golden, normal, slow
from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.engine.checkpoint import LoadReport, Weights, load_backbone
from vidssl.engine.official import unwrapped
from vidssl.evaluation.classifier import MapClassifier, restored
from vidssl.registry import ConfigError

FILES = {  # key list of a release -> our backbone
    "moco/r2plus1d_18": "r2plus1d18",
    "moco/r2plus1d_18_eval": "r2plus1d18",
    "moco/I3D": "i3d",
    "moco/I3D_eval": "i3d",
    "dclr/r2plus1d_18": "r2plus1d10",
    "dclr/r3d_18": "r3d18",
    "dclr/mc3_18": "mc3_18",
    "fima/i3d": "i3d",
    "fima/i3d_ucf101": "i3d",
    "fima/i3d_classifier": "i3d",
    "fima/r2plus1d": "r2plus1d18",
    "fima/r2plus1d_ucf101": "r2plus1d18",
    "fima/r2plus1d_classifier": "r2plus1d18",
}
BE = {
    "c3d": "c3d", "r3d18": "r3d18_be", "r3d34": "r3d34", "r3d50": "r3d50", "r2p1d": "r2plus1d10_be", "i3d": "i3d",
    "s3dg": "s3dg",
}  # fmt: skip
FILES |= {f"be/{arch}_{kind}": name for arch, name in BE.items() for kind in ("pretrain", "finetune")}
LARGE = re.compile("r3d34|r3d50|r3d_18|c3d|_ucf101")  # half a second each and more
CLASSIFIERS = [file for file in FILES if file.endswith(("_eval", "_classifier", "_finetune"))]


def entries(file: str) -> dict[str, Tensor]:
    """The state_dict as the release saves it; what stays unread holds zeros that take no room."""
    content = json.loads((GOLDEN / f"{file}_keys.json").read_text())
    found = {}
    for key, shape, dtype, *_ in content["keys"] if isinstance(content, dict) else content:
        plain = key.removeprefix("module.")
        if plain.startswith("encoder_k.") or "queue" in plain:
            found[key] = torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)
        else:  # DCLR's recorded encoder is filled by its own names
            name = plain.removeprefix("encoder_q.") if file.startswith("dclr/") else plain
            found[key] = fill(name, shape).to(getattr(torch, dtype))
    return found


def wrapped(file: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint of that release."""
    if file.startswith("be/"):
        prefix = "module.base_model." if file in CLASSIFIERS else "module."
        state = {prefix + key: value for key, value in state.items()}
        if file in CLASSIFIERS:
            return {"epoch": 45, "state_dict": state, "best_prec1": torch.tensor(86.5), "optimizer": {}}
        return {"opt": argparse.Namespace(pt_lr=0.003), "model": state, "contrast": {}, "optimizer": {}, "epoch": 50}
    if file.endswith("_eval"):
        state = {f"module.{key}": value for key, value in state.items()}
    return {"epoch": 200, "arch": "any", "state_dict": state, "best_acc1": torch.tensor(88.9), "optimizer": {}}


def load(checkpoint: dict[str, Any], folder: Path) -> tuple[Weights, nn.Module, LoadReport]:
    """What task=finetune or task=test would do with it."""
    path = folder / "released.pth.tar"
    torch.save(checkpoint, path)
    weights = build.read_weights(str(path))
    path.unlink()
    with torch.device("meta"):
        network = BACKBONES.build(weights.section)
    network.to_empty(device="cpu")
    return weights, network, load_backbone(weights, network)


@torch.no_grad()
@pytest.mark.parametrize("file", [slow(file) if LARGE.search(file) else file for file in FILES])
def test_every_released_layout_loads_completely_and_answers_as_recorded(file: str, tmp_path: Path) -> None:
    state = entries(file)
    weights, network, report = load(wrapped(file, state), tmp_path)
    assert weights.section == {"name": FILES[file]}
    assert (report.missing, report.unexpected, report.misshapen) == ((), (), ())
    assert report.matched == len(network.state_dict())
    assert "unknown part" not in weights.ignored.values()
    last = [key for key in state if file in CLASSIFIERS and key.removeprefix("module.").startswith(LAST)]
    assert bool(weights.classifier) == bool(last)
    assert report.matched + len(weights.ignored) + len(last) == len(state)
    network.eval()
    release, _, arch = file.partition("/")
    if release == "be" and arch.endswith("_pretrain"):
        assert_be(network, arch.removesuffix("_pretrain"))
    elif release == "be":
        assert_be_classifier(network, weights, arch.removesuffix("_finetune"))
    elif release == "dclr":
        assert_dclr(network, arch)
    elif file in CLASSIFIERS:
        assert_classifier(network, weights, file)


LAST = ("fc.", "linear.", "cp.", "conv3d_0c_1x1_custom.")


def close(found: Tensor, expected: np.ndarray, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=atol)


def assert_be(network: nn.Module, arch: str) -> None:
    """Map, stages, embedding, embedding in training mode and what batch norm learned from it."""
    if arch == "r3d50":  # keys only
        return
    file = golden(f"be/forward_{arch}.npz")
    clip = normal(file["seed"], file["shape"])
    weight, bias = fill("id_head.2.weight", (128, network.out_channels)), fill("id_head.2.bias", (128,))

    def embed(x: Tensor) -> Tensor:
        return F.normalize(F.linear(x.mean(dim=(2, 3, 4)), weight, bias), dim=1)

    seen = {}
    stages = our_stages(network, arch)
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.clone()))
        for name, module in stages.items()
    ]
    x = network(clip)
    for hook in hooks:
        hook.remove()
    close(x, file["conv"], 0, 1e-4 * np.abs(file["conv"]).max())
    close(embed(x), file["embed"], 0, 2e-6)
    rows = {row[0]: row[1:] for row in json.loads((GOLDEN / "be/stage_stats.json").read_text())["stages"][arch]}
    assert len(stages) >= 4
    for name, out in seen.items():
        shape, *figures = rows[name]
        assert list(out.shape) == shape
        found = (out.mean(), out.std(correction=0), out.abs().max())
        np.testing.assert_allclose([figure.item() for figure in found], figures, rtol=1e-4, atol=1e-5)
    network.train()
    close(embed(network(clip)), file["embed_train"], 0, 5e-5)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm3d))
    close(norm.running_mean, file["first_bn_running_mean_after_train"], 0, 1e-6)


def our_stages(network: nn.Module, arch: str) -> dict[str, nn.Module]:
    """Recorded stage -> our module, of those that are a module here, too."""
    children = dict(network.named_children())
    if arch == "r2p1d":
        return {f"conv{n + 1}": children[f"layer{n}"] for n in (1, 2, 3, 4)} | {"relu1": children["stem"]}
    if arch.startswith("r3d"):
        return {name: children[name] for name in children if name != "stem"} | {"maxpool": children["stem"]}
    if arch == "s3dg":
        return {f"feature.{name}": module for name, module in children.items()}
    if arch == "i3d":
        return {name: module for name, module in children.items() if not name.startswith("pool")}
    return {name: module for name, module in children.items() if name.startswith("conv")}


def assert_be_classifier(network: nn.Module, weights: Weights, arch: str) -> None:
    if arch == "r3d50":
        return
    file = golden(f"be/forward_{arch}.npz")
    clip = normal(file.get("cls_seed", file["seed"]), file.get("cls_shape", file["shape"]))
    classifier = restored(network, nn.Identity(), weights.classifier, unit=False).eval()
    assert isinstance(classifier, MapClassifier) == (arch in ("i3d", "s3dg"))
    found = classifier.logits(clip).log_softmax(dim=1)
    close(found, file["log_softmax"], 0, 1e-4 * np.abs(file["log_softmax"]).max())


def assert_dclr(network: nn.Module, arch: str) -> None:
    """Activation maps of the three views: the clip, a still one, frame differences."""
    if arch == "mc3_18":  # keys only
        return
    file = golden(f"dclr/encoder_{arch}_eval.npz")
    batch, _, _, frames, size, _ = (int(n) for n in file["shape"])

    def clip(seed: int, frames: int) -> Tensor:
        random = np.random.RandomState(seed)
        coarse = random.standard_normal((batch, 3, frames, 7, 7)).repeat(size // 7, 3).repeat(size // 7, 4)
        fine = random.standard_normal((batch, 3, frames, size, size))
        return torch.from_numpy((coarse + 0.25 * fine).astype(np.float32))

    seed = int(file["seed"])
    video, still = clip(seed, frames), clip(seed + 2, 1).expand(-1, -1, frames, -1, -1)
    views = {"v": video, "s": still, "d": video - video.roll(1, dims=2)}
    total = sum(view.double().sum().item() for view in views.values())
    np.testing.assert_allclose(total, file["input_sum"], rtol=1e-5)
    for name, view in views.items():
        close(network(view).sum(dim=1, keepdim=True), file[f"map_{name}"], 1e-4, 2e-5)


def assert_classifier(network: nn.Module, weights: Weights, file: str) -> None:
    """FAME's and FIMA's fine-tuned networks; I3D's classifier answers with log-probabilities."""
    release, _, arch = file.partition("/")
    classifier = restored(network, nn.Identity(), weights.classifier, unit=False).eval()
    if release == "fima":
        file, arch = golden("fima/backbones.npz"), arch.removesuffix("_classifier")
        random = np.random.RandomState(int(file["input_seed"]))
        shape = tuple(file[f"{arch}_input_shape"])
        clip = torch.from_numpy(random.uniform(0, 1, size=shape).astype(np.float32))
        close(network(clip), file[f"{arch}_features"], 1e-4, 1e-4)
        expected = file[f"{arch}_output"]
    elif arch == "I3D_eval":
        file = golden("backbones/i3d.npz")
        clip, expected = normal(file["input_seed"], file["input_shape"]), file["log_softmax"]
    else:
        return  # recorded with 128 outputs: tests/backbones
    logits = classifier.logits(clip)
    close(logits.log_softmax(dim=1) if "i3d" in arch.lower() else logits, expected, 1e-4, 1e-4)


@torch.no_grad()
def test_golden_r3d18_in_torchvisions_layout(tmp_path: Path) -> None:
    """FIMA's release has it, without a list of its keys."""
    names = {key: value.shape for key, value in BACKBONES.build({"name": "r3d18"}).state_dict().items()}
    state = {key: fill(key, shape) for key, shape in [*names.items(), ("fc.weight", (51, 512)), ("fc.bias", (51,))]}
    weights, network, _ = load({"state_dict": state}, tmp_path)
    file = golden("fima/backbones.npz")
    random = np.random.RandomState(int(file["input_seed"]))
    clip = torch.from_numpy(random.uniform(0, 1, size=tuple(file["r3d_input_shape"])).astype(np.float32))
    classifier = restored(network, nn.Identity(), weights.classifier, unit=False).eval()
    close(classifier.logits(clip), file["r3d_output"], 1e-4, 1e-4)


@pytest.mark.parametrize("file", ["moco/I3D", "moco/I3D_eval", "be/c3d_finetune"])
def test_names_may_come_without_wrappers_and_entries_without_a_checkpoint(file: str, tmp_path: Path) -> None:
    state = {key.removeprefix("module."): value for key, value in entries(file).items()}
    weights, _, report = load(state, tmp_path)
    assert not report.missing
    assert bool(weights.classifier) == (file in CLASSIFIERS)


@pytest.mark.parametrize("around", ["model.", "net.encoder.", "module.model.", "model.module."])
def test_names_of_modules_around_the_network_are_removed(around: str) -> None:
    own = {"stem.0.weight": torch.zeros(1), "layer1.0.conv1.0.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    assert unwrapped({around + key: value for key, value in own.items()}) == own


@pytest.mark.parametrize("key", ["layers.0.weight", "stem.weight", "encoder_q.stem.weight"])
def test_names_of_the_networks_own_parts_stay(key: str) -> None:
    assert list(unwrapped({f"module.{key}": torch.zeros(1)})) == [key]


@pytest.mark.parametrize("name", ["mc3_18", "tiny"])
def test_a_network_beside_other_parts_is_found_with_numbers_left_aside(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        own = BACKBONES.build({"name": name, "width": 4} if name == "tiny" else {"name": name}).state_dict()
    own = {key: torch.zeros(value.shape) for key, value in own.items()}
    parts = {f"backbone.{key}": value for key, value in own.items()} | {"cls_head.fc.weight": torch.zeros(2, 3)}
    torch.save({"net": {**parts, "epoch": 3, "best": np.float32(0.5)}}, tmp_path / "a.pth")
    weights = build.read_weights(str(tmp_path / "a.pth"))
    assert weights.section == (None if name == "tiny" else {"name": name})
    assert weights.backbone.keys() == own.keys()
    assert weights.ignored == {"cls_head.fc.weight": "unknown part"}


def test_networks_within_other_weights_are_told() -> None:
    with torch.device("meta"):
        own = BACKBONES.build({"name": "mc3_18"}).state_dict()
    state = {f"{part}.net.{key}": value for part in ("base", "slow") for key, value in own.items()}
    told = build.misfit(Weights(state, {}, None, "state dict"), {"name": "tiny", "width": 4})
    assert told.startswith("has a whole network under base.net. (backbone=mc3_18), slow.net. (backbone=mc3_18) beside")


def test_of_weights_that_fit_nothing_the_nearest_backbone_is_told(tmp_path: Path) -> None:
    with torch.device("meta"):
        own = BACKBONES.build({"name": "mc3_18"}).state_dict()
    state = {key: torch.zeros(value.shape) for key, value in own.items()}
    state["extra.weight"] = state.pop("layer4.1.conv2.0.weight")
    torch.save(state, tmp_path / "a.pth")
    weights = build.read_weights(str(tmp_path / "a.pth"))
    told = "state dict: 119 tensors matched; 1 missing: layer4.1.conv2.0.weight; 1 unexpected: extra.weight"
    assert build.misfit(weights, {"name": "tiny", "width": 4}) == f"does not fit backbone=mc3_18, the nearest: {told}"
    assert build.misfit(weights, {"name": "mc3_18"}) == f"does not fit backbone=mc3_18: {told}"
    torch.save({"patch.weight": torch.zeros(3, 2)}, tmp_path / "b.pth")
    told = build.misfit(build.read_weights(str(tmp_path / "b.pth")), {"name": "tiny", "width": 4})
    assert told.startswith("none of its 1 tensors has name and size of one in any of tiny, c3d, i3d")
    assert told.endswith("patch.weight [3, 2]")


def test_a_released_checkpoint_without_a_layer_fails_loudly(tmp_path: Path) -> None:
    state = entries("moco/r2plus1d_18")
    del state["module.encoder_q.layer3.1.conv2.0.3.weight"]
    torch.save({"state_dict": state}, tmp_path / "released.pth.tar")
    weights = build.read_weights(str(tmp_path / "released.pth.tar"))
    assert weights.section is None
    with pytest.raises(ConfigError, match=r"1 missing: layer3.1.conv2.0.3.weight"):
        load_backbone(weights, BACKBONES.build({"name": "r2plus1d18"}))


def test_parts_that_depend_on_the_release_are_left_aside_by_name(tmp_path: Path) -> None:
    extra = {"aug_gpu.blur.sigma": torch.zeros(1), "somebody.elses": torch.zeros(1)}
    state = entries("fima/r2plus1d_ucf101") | {f"module.{key}": value for key, value in extra.items()}
    weights, _, report = load(wrapped("fima/r2plus1d_ucf101", state), tmp_path)
    assert weights.ignored["aug_gpu.blur.sigma"] == "augmentation"
    assert weights.ignored["somebody.elses"] == "unknown part"
    assert weights.ignored["transformer_decoder.layers.1.norm3.bias"] == "FIMA's local branch"
    assert weights.ignored["motion_queue_ptr"] == "queue"
    assert weights.ignored["encoder_k.stem.0.weight"] == "momentum encoder"
    assert "222 tensors matched; left aside: " in report.lines()[0]
    assert "222 momentum encoder" in report.lines()[0]

    state = entries("be/i3d_pretrain") | {f"painting_{part}.conv.weight": torch.zeros(1) for part in ("Gen", "Dis")}
    weights, _, _ = load(wrapped("be/i3d_pretrain", state), tmp_path)
    assert weights.ignored["painting_Gen.conv.weight"] == "BE's unpublished inpainting"


def test_other_blocks_than_the_backbones_are_refused_by_name(tmp_path: Path) -> None:
    """DCLR pretrains one block a stage under the name of a network that has two."""
    path = tmp_path / "checkpoint_0199.pth.tar"
    torch.save(wrapped("dclr/r2plus1d_18", entries("dclr/r2plus1d_18")), path)
    weights = build.read_weights(str(path))
    assert "add backbone=r2plus1d10" in build.backbone_mismatch(str(path), weights.section, {"name": "r2plus1d18"})
    with pytest.raises(ConfigError, match=r"missing: layer1.1.conv1"):
        load_backbone(weights, BACKBONES.build({"name": "r2plus1d18"}))


@torch.no_grad()
def test_a_classifier_over_time_weighs_frames_as_released() -> None:
    """At more map frames than two: means of neighbors, a convolution padded with zeros, its mean."""

    class Seen(nn.Module):
        out_channels, strides = 5, (1, 1)

        def forward(self, clip: Tensor) -> Tensor:
            return clip

    clip = torch.randn(2, 5, 8, 7, 7)
    layer = {"weight": torch.randn(4, 5, 7), "bias": torch.randn(4)}
    released = nn.Conv3d(5, 4, (7, 1, 1), padding=(3, 0, 0))
    released.load_state_dict({"weight": layer["weight"][..., None, None], "bias": layer["bias"]})
    expected = released(F.avg_pool3d(clip, (2, 7, 7), stride=1)).mean(dim=(2, 3, 4))
    found = restored(Seen(), nn.Identity(), layer, unit=False).logits(clip)
    torch.testing.assert_close(found, expected)
