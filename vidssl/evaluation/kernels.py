"""What the temporal kernels of a network look like."""

from __future__ import annotations

from torch import Tensor, nn


def temporal_kernels(network: nn.Module) -> dict[str, Tensor]:
    """Layer -> its weight [O, I, T, h, w], of all 3D convolutions that see more than one frame."""
    return {
        name: module.weight.detach().float().cpu()
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1
    }


def by_offset(weight: Tensor, most: int = 4000) -> Tensor:
    """Weights by their place in time, [O, I, T, h, w] -> [T, N]; evenly spread ones where there are more than that."""
    each = weight.transpose(0, 2).flatten(1)
    return each[:, :: -(-each.shape[1] // most)]


def variation(weight: Tensor) -> Tensor:
    """Share of each kernel's length that varies over time, |w - mean over time of w| / |w|.

    [O, I, T, h, w] -> [O] in [0, 1]. 0: the same at all times, so that the order of frames does not matter; 1: the mean
    over time is 0, so that nothing but change is seen. A kernel of zeros gives 0.
    """
    changing = weight - weight.mean(dim=2, keepdim=True)
    length = weight.flatten(1).norm(dim=1)
    return (changing.flatten(1).norm(dim=1) / length.where(length > 0, 1)).clamp(0, 1)
