from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import fill, golden, normal
from vidssl.backbones.blocks import BACKBONES

OPTIONS = {"tiny": {"width": 16}, "tiny_r3d": {"width": 8}}


def backbone(name: str) -> nn.Module:
    return BACKBONES.build({"name": name, **OPTIONS.get(name, {})})


@pytest.fixture(scope="module", params=BACKBONES.names())
def network(request: pytest.FixtureRequest) -> nn.Module:
    """Each backbone in turn, with its name."""
    torch.manual_seed(0)
    built = backbone(request.param)
    built.name = request.param
    return built


def test_map_has_the_promised_size_and_gradients_reach_the_first_layer(network: nn.Module) -> None:
    time, space = network.strides
    found = network(torch.randn(2, 3, 2 * time, space, 2 * space))
    assert found.shape == (2, network.out_channels, 2, 1, 2)
    first = next(network.parameters())
    (gradient,) = torch.autograd.grad(found.mean(), first)
    assert gradient.abs().max() > 0


def test_parameters_are_as_many_as_the_docstring_says(network: nn.Module) -> None:
    told = re.search(r"([\d,]{6,}) parameters", BACKBONES.get(network.name).__doc__)
    assert sum(p.numel() for p in network.parameters()) == int(told[1].replace(",", ""))


@pytest.mark.slow
def test_bfloat16_with_channels_last_gives_every_parameter_a_gradient(network: nn.Module) -> None:
    time, space = network.strides
    # three map frames: see vidssl.engine.device.PaddedConv3d
    clip = torch.randn(2, 3, 3 * time, space, space).contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        found = network.to(memory_format=torch.channels_last_3d)(clip)
    assert found.dtype == torch.bfloat16
    parameters = list(network.parameters())
    for gradient in torch.autograd.grad((found.float() * torch.randn(found.shape)).sum(), parameters):
        assert 0 < gradient.abs().max() < torch.inf


@pytest.mark.parametrize("name", ["c3d", "s3dg", "r3d50", "r2plus1d10_be"])
def test_networks_of_bes_release_start_as_there(name: str) -> None:
    torch.manual_seed(0)
    network = backbone(name)
    convs = [module.weight for module in network.modules() if isinstance(module, nn.Conv3d)]
    norms = torch.cat([module.weight for module in network.modules() if isinstance(module, nn.BatchNorm3d)])
    for weight in convs:
        out, into, *kernel = weight.shape
        bound = (2 * 6 / ((out + into) * np.prod(kernel))) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound
    assert norms.mean().item() == pytest.approx(1, abs=3e-3)
    assert norms.std().item() == pytest.approx(0.02, rel=0.1)


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
