"""Precision, memory format and known faults of a device; transfer of batches to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.clips import Batch
from vidssl.engine.distributed import keep_freed_memory
from vidssl.registry import ConfigError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["fp32", "bf16", "fp16"]


def resolve_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """Precision in effect. auto: bf16 on GPUs with units for it (compute capability 8.0), fp32 elsewhere.

    CPUs with such units use fp32 as well, so that all CPUs give the same metrics.
    """
    if precision != "auto":
        return precision
    has_units = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if has_units else "fp32"


def use_channels_last(option: bool | Literal["auto"], precision: Precision, device: torch.device) -> bool:
    """Whether convolutions use the channels-last format. auto: in half precision on GPUs."""
    return device.type == "cuda" and precision in HALF if option == "auto" else option


def prepare(precision: Precision, device: torch.device) -> None:
    """Set up a device before any work. Raises ConfigError if it computes wrong results in this precision."""
    if device.type == "cpu":
        keep_freed_memory()
        return
    torch.backends.cudnn.benchmark = True  # the sizes of clips do not change
    check_convolution(precision, device)


def described(precision: Precision, device: torch.device) -> str:
    """Device and precision for the log."""
    if device.type != "cuda":
        return f"{device} in {precision}"
    return f"{device} in {precision}, {torch.cuda.get_device_name(device)} with cuDNN {cudnn_version()}"


class ToDevice:
    """Iterator of a loader's batches on the device; the copy of a batch overlaps with work on the previous one.

    On GPUs copies run on their own stream, and the computing stream waits only for its batch. Batches are expected in
    pinned memory.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device):
        self.batches, self.device = batches, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> ToDevice:
        return self

    def __next__(self) -> Batch:
        batch = next(self.batches)
        if self.stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self.stream):
            moved = batch.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for part in moved:
            part.record_stream(computing)  # else its memory could be reused before that stream is done with it
        return moved


# ---------------------------------------------------------------------------------------------------------------------
# Known faults


def known_faults(precision: Precision, device: torch.device) -> list[str]:
    """Known faults of this PyTorch and cuDNN in 3D convolutions in half precision, one line each."""
    cudnn = torch.backends.cudnn.version()
    if precision not in HALF or device.type != "cuda" or cudnn is None:
        return []
    faults, name, torch_version = [], cudnn_version(), torch.__version__
    if cudnn == 91002:
        faults.append(f"cuDNN {name} computes 3D convolutions of huge inputs wrong in {precision} (pytorch #163539)")
    if torch_version.startswith("2.9.") and cudnn < 91500:
        faults.append(
            f"PyTorch {torch_version} with cuDNN {name} takes much memory for 3D convolutions in {precision} "
            "(pytorch #166643); cuDNN 9.15 does not"
        )
    return faults


def cudnn_version() -> str:
    """Version of cuDNN as 9.10.2, for its number 91002."""
    number = torch.backends.cudnn.version() or 0
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


class PaddedConv3d(nn.Conv3d):
    """3D convolution that pads short clips in time first, with the same results.

    On CPUs PyTorch computes wrong weight gradients of bfloat16 convolutions, and writes beyond its memory, if the
    kernel is longer than an input of more than one frame (seen with PyTorch 2.13 on a processor with AVX-512 BF16).
    """

    padding: tuple[int, ...]  # never a string, see pad_short_clips

    def forward(self, clip: Tensor) -> Tensor:
        if not 1 < clip.shape[2] < self.kernel_size[0]:
            return super().forward(clip)
        time, *space = self.padding
        clip = F.pad(clip, (0, 0, 0, 0, time, time))
        return F.conv3d(clip, self.weight, self.bias, self.stride, (0, *space), self.dilation, self.groups)


def pad_short_clips(network: nn.Module) -> None:
    """Replace the zero-padded convolutions of a network with PaddedConv3d; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = PaddedConv3d


TOLERANCE = 0.02  # of the largest value; rounding to bfloat16 gives 0.004


def check_convolution(precision: Precision, device: torch.device) -> None:
    """Raise ConfigError if a 3D convolution or its gradient is wrong in half precision."""
    if precision not in HALF:
        return
    generator = torch.Generator().manual_seed(0)
    clip, weight = (
        (std * torch.randn(shape, generator=generator)).to(device).requires_grad_()
        for shape, std in (((2, 16, 8, 14, 14), 1.0), ((32, 16, 3, 3, 3), 0.1))  # fp16 ends at 65504
    )
    exact, half = (_convolved(clip, weight, dtype) for dtype in (torch.float32, HALF[precision]))
    error = max(((h - e).abs().max() / e.abs().max()).item() for h, e in zip(half, exact, strict=True))
    if not error <= TOLERANCE:  # nor nan
        library = f" (cuDNN {cudnn_version()})" if device.type == "cuda" else ""
        raise ConfigError(
            f"precision={precision}: a 3D convolution on {device}{library} is off by {error:.0%}; take "
            "precision=fp32, or other versions of PyTorch and its libraries"
        )


def _convolved(clip: Tensor, weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output of a convolution and the gradients of its sum of squares, float32."""
    x, w = (each.to(dtype).contiguous(memory_format=torch.channels_last_3d) for each in (clip, weight))
    output = F.conv3d(x, w, padding=1).float()
    return [output.detach(), *torch.autograd.grad(output.square().sum(), (clip, weight))]
