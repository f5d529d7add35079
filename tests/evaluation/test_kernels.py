from __future__ import annotations

import pytest
import torch
from torch import nn

from vidssl.evaluation.kernels import by_offset, temporal_kernels, variation


def test_a_kernel_that_is_the_same_at_all_times_does_not_vary() -> None:
    still = torch.randn(5, 4, 1, 2, 2).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(variation(still), torch.zeros(5), atol=1e-6, rtol=0)


def test_a_kernel_whose_mean_over_time_is_zero_varies_wholly() -> None:
    weight = torch.randn(5, 4, 3, 2, 2)
    weight = weight - weight.mean(dim=2, keepdim=True)
    torch.testing.assert_close(variation(weight), torch.ones(5))
    torch.testing.assert_close(variation(torch.tensor([1.0, 0.0, -1.0]).view(1, 1, 3, 1, 1)), torch.ones(1))


def test_an_impulse_varies_by_the_root_of_two_thirds() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0]).view(1, 1, 3, 1, 1)
    assert variation(weight).item() == pytest.approx((2 / 3) ** 0.5)
    assert variation(4 * weight).item() == pytest.approx((2 / 3) ** 0.5), "its length does not count"
    assert variation(0 * weight).item() == 0


def test_layers_that_see_one_frame_are_left_out() -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3)), nn.Conv3d(4, 5, (3, 1, 1)), nn.Linear(5, 2))
    found = temporal_kernels(network)
    assert list(found) == ["1"]
    assert found["1"].shape == (5, 4, 3, 1, 1)


def test_weights_are_sorted_by_their_place_in_time() -> None:
    weight = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(6, 5, 3, 2, 2)
    rows = by_offset(weight, most=50)
    assert rows.shape == (3, 40)
    torch.testing.assert_close(rows, torch.arange(3.0)[:, None].expand(3, 40))
    assert by_offset(weight).shape == (3, 120)
