from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import fill, golden, normal
from vidssl.backbones.blocks import BACKBONES

OPTIONS = {"tiny": {"width": 16}}


def backbone(name: str) -> nn.Module:
    return BACKBONES.build({"name": name, **OPTIONS.get(name, {})})


@pytest.mark.parametrize("name", BACKBONES.names())
def test_map_has_the_promised_size_and_gradients_reach_the_first_layer(name: str) -> None:
    network = backbone(name)
    time, space = network.strides
    clip = torch.randn(2, 3, 2 * time, 2 * space, 3 * space)
    found = network(clip)
    assert found.shape == (2, network.out_channels, 2, 2, 3)
    found.mean().backward()
    first = next(network.parameters())
    assert first.grad is not None
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("name", BACKBONES.names())
def test_parameters_are_as_many_as_the_docstring_says(name: str) -> None:
    told = re.search(r"([\d,]{6,}) parameters", BACKBONES.get(name).__doc__)
    assert sum(p.numel() for p in backbone(name).parameters()) == int(told[1].replace(",", ""))


def filled(name: str) -> nn.Module:
    network = backbone(name)
    network.load_state_dict({key: fill(key, value.shape) for key, value in network.state_dict().items()})
    return network


def linear(x: torch.Tensor, key: str, out: int) -> torch.Tensor:
    return F.linear(x, fill(f"{key}.weight", (out, x.shape[1])), fill(f"{key}.bias", (out,)))


def close(found: torch.Tensor, expected: np.ndarray, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=rtol, atol=atol)


def stage_statistics(network: nn.Module, clip: torch.Tensor, stages: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.detach()))
        for name, module in stages.items()
    ]
    with torch.no_grad():
        network(clip)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_golden_r2plus1d18() -> None:
    file = golden("backbones/r2plus1d_18.npz")
    network, clip = filled("r2plus1d18").eval(), normal(file["input_seed"], file["input_shape"])
    feature = network(clip).mean(dim=(2, 3, 4))
    close(feature, file["feature"], 1e-4, 1e-4)
    close(linear(feature, "fc", 128), file["fc_out"], 1e-4, 1e-4)
    close(linear(linear(feature, "fc.0", 512).relu(), "fc.2", 128), file["mlp_out"], 1e-4, 1e-4)
    stages = {name: getattr(network, name) for name in ("stem", "layer1", "layer2", "layer3", "layer4")}
    assert_stages(stage_statistics(network, clip, stages), file)
    network.train()
    feature = network(normal(file["input_seed"] + 1, file["train_input_shape"])).mean(dim=(2, 3, 4))
    close(feature, file["train_feature"], 1e-3, 1e-3)
    close(linear(feature, "fc", 128), file["train_fc_out"], 1e-3, 1e-3)
    assert_buffers(network, file)


@torch.no_grad()
def test_golden_i3d() -> None:
    file = golden("backbones/i3d.npz")
    network, clip = filled("i3d").eval(), normal(file["input_seed"], file["input_shape"])

    def head(feature: torch.Tensor) -> torch.Tensor:
        return F.normalize(linear(linear(feature, "id_head.2", 1024).relu(), "id_head.4", 128))

    feature = network(clip).mean(dim=(2, 3, 4))
    close(feature, file["feature"], 1e-4, 1e-4)
    close(head(feature), file["embedding"], 0, 1e-5)
    close(linear(feature, "fc", 101).log_softmax(dim=1), file["log_softmax"], 1e-4, 1e-4)
    names = {key.removeprefix("shape.") for key in file if key.startswith("shape.")}
    pools = {"maxPool3d_2a_3x3": network.pool_2a, "maxPool3d_5a_2x2": network.pool_5a}
    stages = {name: pools[name] if name in pools else getattr(network, name) for name in names}
    assert_stages(stage_statistics(network, clip, stages), file)
    network.train()
    feature = network(normal(file["input_seed"] + 1, file["train_input_shape"])).mean(dim=(2, 3, 4))
    close(feature, file["train_feature"], 1e-3, 1e-3)
    close(head(feature), file["train_embedding"], 1e-3, 1e-3)
    assert_buffers(network, file)


def assert_stages(seen: dict[str, torch.Tensor], file: dict[str, np.ndarray]) -> None:
    assert len(seen) >= 5
    for name, out in seen.items():
        assert tuple(out.shape) == tuple(file[f"shape.{name}"])
        close(out.mean(dim=(2, 3, 4)), file[f"chmean.{name}"], 1e-4, 1e-4)
        close(out.flatten(2).std(dim=2, correction=0), file[f"chstd.{name}"], 1e-4, 1e-4)


def assert_buffers(network: nn.Module, file: dict[str, np.ndarray]) -> None:
    recorded = {
        key.removeprefix("train_state."): value for key, value in file.items() if key.startswith("train_state.")
    }
    assert recorded
    state = network.state_dict()
    for key, value in recorded.items():
        close(state[key], value, 1e-3, 1e-3)
