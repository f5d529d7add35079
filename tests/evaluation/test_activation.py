from __future__ import annotations

import torch

from vidssl.evaluation.activation import activation_map


def test_one_hot_cell_lights_up_its_own_place() -> None:
    feature_map = torch.zeros(2, 8, 2, 4, 4)
    feature_map[0, 3, 1, 0, 2] = -5.0  # sign does not count
    feature_map[1, :, 0, 3, 3] = 0.1
    heat = activation_map(feature_map, (8, 32, 32))
    assert heat.shape == (2, 8, 32, 32)
    assert heat.min() >= 0
    assert heat.max() <= 1
    for row, (time, y, x) in enumerate([(1, 0, 2), (0, 3, 3)]):
        t, h, w = torch.unravel_index(heat[row].argmax(), heat[row].shape)
        assert (t // 4, h // 8, w // 8) == (time, y, x)
        assert heat[row].max() > 0.7


def test_each_clip_has_its_own_scale_and_channels_count_alike() -> None:
    torch.manual_seed(0)
    feature_map = torch.rand(2, 6, 2, 3, 3)
    heat = activation_map(feature_map, (2, 3, 3))  # at its own size nothing is enlarged
    expected = feature_map.mean(dim=1).flatten(1)
    expected = (expected - expected.amin(1, True)) / (expected.amax(1, True) - expected.amin(1, True))
    torch.testing.assert_close(heat.flatten(1), expected)
    torch.testing.assert_close(activation_map(7 * feature_map[:, torch.randperm(6)], (2, 3, 3)), heat)


def test_a_map_that_answers_alike_everywhere_points_nowhere() -> None:
    assert activation_map(torch.full((1, 4, 2, 2, 2), 3.0), (4, 8, 8)).abs().max() == 0
