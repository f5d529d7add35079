"""What a device computes in, how batches get there, and what is known to go wrong."""

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


def settled(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """auto: bf16 on GPUs with units for it (compute capability 8.0), fp32 elsewhere.

    Not on CPUs that have such units: what runs on one CPU should give the figures of another.
    """
    if precision != "auto":
        return precision
    has_units = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if has_units else "fp32"


def wants_channels_last(chosen: bool | Literal["auto"], precision: Precision, device: torch.device) -> bool:
    """auto: for convolutions in half precision on GPUs."""
    return device.type == "cuda" and precision in HALF if chosen == "auto" else chosen


def prepare(precision: Precision, device: torch.device) -> None:
    """Before any work. Raises ConfigError where this precision comes out wrong on this device."""
    if device.type == "cpu":
        keep_freed_memory()
        return
    torch.backends.cudnn.benchmark = True  # the sizes of clips do not change
    check_convolution(precision, device)


def described(precision: Precision, device: torch.device) -> str:
    place = f"{device} in {precision}"
    if device.type == "cuda":
        place += f", {torch.cuda.get_device_name(device)} with cuDNN {cudnn_version()}"
    return place


class ToDevice:
    """A loader's batches on the device, each copied while the device still works on the one before.

    On GPUs copies have a stream of their own, and the stream that computes waits for its batch alone. The batches lie
    in pinned memory, from which the loader has the next ones ready.
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
            part.record_stream(computing)  # its memory is not given away before that stream is done with it
        return moved


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def known_faults(precision: Precision, device: torch.device) -> list[str]:
    """Of these versions of PyTorch and cuDNN at 3D convolutions in half precision, a line each."""
    cudnn = torch.backends.cudnn.version()
    if precision not in HALF or device.type != "cuda" or cudnn is None:
        return []
    told, name, torch_version = [], cudnn_version(), torch.__version__
    if cudnn == 91002:
        told.append(f"cuDNN {name} computes 3D convolutions of huge inputs wrong in {precision} (pytorch #163539)")
    if torch_version.startswith("2.9.") and cudnn < 91500:
        told.append(
            f"PyTorch {torch_version} with cuDNN {name} takes much memory for 3D convolutions in {precision} "
            "(pytorch #166643); cuDNN 9.15 does not"
        )
    return told


def cudnn_version() -> str:
    """As 9.10.2, which cuDNN itself says as 91002."""
    number = torch.backends.cudnn.version() or 0
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


class PaddedConv3d(nn.Conv3d):
    """Pads short clips in time before it convolves them, which gives the same numbers.

    On CPUs PyTorch computes wrong weight gradients of bfloat16 convolutions, and writes beyond its memory, where the
    kernel is longer than an input of more than one frame (seen with PyTorch 2.13 on a processor with AVX-512 BF16).
    """

    def forward(self, clip: Tensor) -> Tensor:
        if not 1 < clip.shape[2] < self.kernel_size[0]:
            return super().forward(clip)
        time, *space = self.padding
        clip = F.pad(clip, (0, 0, 0, 0, time, time))
        return F.conv3d(clip, self.weight, self.bias, self.stride, (0, *space), self.dilation, self.groups)


def pad_short_clips(network: nn.Module) -> None:
    """In all of its convolutions that pad with zeros; their names and weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = PaddedConv3d


WRONG = 0.02  # of the largest value; rounding to bfloat16 gives 0.004


def check_convolution(precision: Precision, device: torch.device) -> None:
    """Raises ConfigError where a 3D convolution or its gradient comes out wrong in half precision."""
    if precision not in HALF:
        return
    chance = torch.Generator().manual_seed(0)
    clip, weight = (
        (spread * torch.randn(shape, generator=chance)).to(device).requires_grad_()
        for shape, spread in (((2, 16, 8, 14, 14), 1.0), ((32, 16, 3, 3, 3), 0.1))  # small: fp16 ends at 65504
    )
    exact, half = (_convolved(clip, weight, kind) for kind in (torch.float32, HALF[precision]))
    apart = max(((h - e).abs().max() / e.abs().max()).item() for h, e in zip(half, exact, strict=True))
    if not apart <= WRONG:
        library = f" (cuDNN {cudnn_version()})" if device.type == "cuda" else ""
        raise ConfigError(
            f"precision={precision}: a 3D convolution on {device}{library} is off by {apart:.0%}; take "
            "precision=fp32, or other versions of PyTorch and its libraries"
        )


def _convolved(clip: Tensor, weight: Tensor, kind: torch.dtype) -> list[Tensor]:
    """The result and the gradients of its sum of squares, float32."""
    inputs = [x.to(kind).contiguous(memory_format=torch.channels_last_3d) for x in (clip, weight)]
    found = F.conv3d(*inputs, padding=1).float()
    return [found.detach(), *torch.autograd.grad(found.square().sum(), (clip, weight))]
