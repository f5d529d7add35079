"""A linear classifier on frozen features that has no setting to choose: the one best fit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def logistic(features: Tensor, label: Tensor, classes: int, *, steps: int = 200) -> nn.Linear:
    """Multinomial logistic regression on standardized features, all at once by L-BFGS.

    features float32 [N, C], label int64 [N]. Minimizes the summed cross entropy plus half the squared weights, the
    usual C = 1. The layer takes features as they are: center and spread are folded into its weights.
    """
    with torch.enable_grad():
        center, spread = features.mean(dim=0), features.std(dim=0, correction=0).clamp(min=1e-6)
        scaled = (features - center) / spread
        weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
        bias = torch.zeros(classes, device=features.device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            told = F.linear(scaled, weight, bias)
            total = F.cross_entropy(told, label) + weight.square().sum() / (2 * len(label))
            total.backward()
            return total

        optimizer.step(loss)
    layer = nn.Linear(features.shape[1], classes, device=features.device).requires_grad_(False)
    layer.weight.copy_(weight.detach() / spread)
    layer.bias.copy_(bias.detach() - layer.weight @ center)
    return layer
