from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vidssl.clips import Batch
from vidssl.engine import device as devices
from vidssl.engine.device import (
    PaddedConv3d,
    ToDevice,
    check_convolution,
    described,
    known_faults,
    pad_short_clips,
    resolve_precision,
    use_channels_last,
)
from vidssl.registry import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_gpus_that_have_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", GPU) == expected
    assert resolve_precision("fp16", GPU) == "fp16"
    assert use_channels_last("auto", resolve_precision("auto", GPU), GPU) is (expected == "bf16")


def test_a_cpu_computes_as_every_other_unless_told() -> None:
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert use_channels_last("auto", "bf16", CPU) is False
    assert use_channels_last(True, "fp32", CPU) is True
    assert use_channels_last(False, "bf16", GPU) is False


def test_batches_come_in_order_and_the_end_is_the_end() -> None:
    def batches() -> Iterator[Batch]:
        for number in range(3):
            yield Batch(*(torch.full((2,), number) for _ in Batch._fields))

    moved = ToDevice(batches(), CPU)
    assert [batch.index.tolist() for batch in moved] == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(StopIteration):
        next(moved)


@pytest.mark.parametrize(
    ("precision", "cudnn", "version", "words"),
    [
        ("bf16", 91002, "2.9.1", ["wrong", "9.10.2", "#163539"]),
        ("fp16", 91300, "2.9.0", ["memory", "9.13.0", "#166643"]),
        ("bf16", 91500, "2.9.1", []),
        ("bf16", 91300, "2.11.0", []),
        ("fp32", 91002, "2.9.1", []),
        ("bf16", None, "2.9.1", []),
    ],
)
def test_known_faults_of_libraries_are_told(
    precision: str, cudnn: int | None, version: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    monkeypatch.setattr(torch, "__version__", version)
    told = " ".join(known_faults(precision, GPU))
    assert bool(told) is bool(words)
    assert all(word in told for word in words)
    assert known_faults(precision, CPU) == []


def test_the_head_of_a_run_names_the_card_and_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert described("bf16", GPU) == "cuda:0 in bf16, NVIDIA H100 with cuDNN 9.10.2"
    assert described("fp32", CPU) == "cpu in fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions_are_sound_here(precision: str) -> None:
    check_convolution(precision, CPU)


@pytest.mark.parametrize("fault", [1.1, float("nan")])
def test_a_convolution_that_comes_out_wrong_is_told(fault: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = devices.F.conv3d

    def wrong(clip: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        found = right(clip, weight, padding=padding)
        return found * fault if clip.dtype is torch.bfloat16 else found

    monkeypatch.setattr(devices.F, "conv3d", wrong)
    with pytest.raises(ConfigError, match=r"precision=bf16: a 3D convolution on cpu is off by .*precision=fp32"):
        check_convolution("bf16", CPU)


@pytest.mark.parametrize(("frames", "kernel"), [(1, 3), (2, 3), (4, 5), (4, 3), (2, 7)])
def test_short_clips_get_the_gradients_that_float32_gets(frames: int, kernel: int) -> None:
    torch.manual_seed(0)
    clip = torch.randn(2, 32, frames, 7, 7)
    conv = nn.Sequential(nn.Conv3d(32, 48, (kernel, 3, 3), padding=(kernel // 2, 1, 1)))
    names, weights = list(conv.state_dict()), torch.randn(conv(clip).shape)

    def results(half: bool) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = conv(clip.contiguous(memory_format=torch.channels_last_3d)).float()
        return [found, *torch.autograd.grad((found * weights).sum(), list(conv.parameters()))]

    exact = results(False)
    pad_short_clips(conv)
    assert list(conv.state_dict()) == names
    for same, half, right in zip(results(False), results(True), exact, strict=True):
        torch.testing.assert_close(same, right, rtol=1e-4, atol=1e-4)
        assert (half - right).abs().max() < 0.02 * right.abs().max()


def test_only_plain_convolutions_with_zeros_around_are_changed() -> None:
    convs = nn.ModuleList(
        [nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(3, 4, 3, padding="same"), nn.Conv3d(3, 4, 3, padding_mode="circular")]
    )
    pad_short_clips(convs)
    assert [isinstance(conv, PaddedConv3d) for conv in convs] == [True, False, False]
