from __future__ import annotations

import torch

from vidssl.evaluation.tsne import LEAST, tsne


def test_groups_stay_groups_and_the_seed_decides() -> None:
    torch.manual_seed(0)
    label = torch.arange(36) % 3
    features = 20 * torch.eye(3, 16)[label] + torch.randn(36, 16)
    places = tsne(features, perplexity=20.0, seed=0)
    assert places.shape == (36, 2)
    distance = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert (label[distance.argmin(dim=1)] == label).all()
    torch.testing.assert_close(tsne(features, perplexity=20.0, seed=0), places)


def test_a_handful_of_videos_is_enough() -> None:
    torch.manual_seed(0)
    assert tsne(torch.randn(LEAST, 8), perplexity=20.0, seed=0).isfinite().all()
