"""Separable Gaussian blur as two small matrix products: rows @ image @ columns.T."""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_size(side: int) -> int:
    """A tenth of the frame's side, rounded down to an odd number: 11 at 112 pixels, 23 at 224."""
    return 2 * (int(0.1 * side) // 2) + 1


def gaussian(size: int, sigma: float) -> Tensor:
    """`size` taps that add up to 1, sigma in samples. -> float32 [size]."""
    taps = torch.exp(-((torch.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    return taps / taps.sum()


def blur_matrix(n: int, size: int, sigma: float) -> Tensor:
    """A Gaussian of `size` taps on a signal of `n` values, reflected at both ends. -> float32 [n, n]."""
    source = (torch.arange(n)[:, None] + torch.arange(size) - size // 2).abs()
    source = torch.where(source >= n, 2 * (n - 1) - source, source)
    return torch.zeros(n, n).scatter_add_(1, source, gaussian(size, sigma).expand(n, size))
