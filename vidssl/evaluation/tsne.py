"""Features in the plane."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 6  # videos: with fewer there are no neighborhoods to keep


def tsne(features: Tensor, *, perplexity: float, seed: int) -> Tensor:
    """t-SNE: neighbors stay neighbors, distances between groups mean little. [N, D] -> float32 [N, 2].

    van der Maaten and Hinton, JMLR 9 (2008), begun from the two main axes. perplexity: about how many neighbors count;
    no more than a third of the videos are taken.
    """
    from sklearn.manifold import TSNE  # slow, and in an extra

    perplexity = min(perplexity, (len(features) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return torch.from_numpy(made.fit_transform(features.double().numpy())).float()
