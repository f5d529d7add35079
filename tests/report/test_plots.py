"""Pictures of networks: sizes, what is where, and nothing on top of something else."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from vidssl.report import canvas, curves, kernels, scatter
from vidssl.report.confusion import confusion

DENSITY = 2


def boxes(texts: list) -> np.ndarray:
    """Left, bottom, right, top of each in pixels."""
    return np.array([text.get_window_extent().extents for text in texts])


def names(count: int) -> list[str]:
    known = ["ApplyEyeMakeup", "HandstandPushups", "YoYo", "50$ and $5", "TaiChi"]
    return [f"{known[number % 5]}{number // 5}" for number in range(count)]


@pytest.mark.parametrize("count", [2, 8, 51, 101])
def test_the_names_of_a_confusion_matrix_are_all_there_and_do_not_touch(count: int, drawn: list[Figure]) -> None:
    confused = [(0, 1, 0.5)] * 15
    picture = confusion(np.eye(count), names(count), confused)
    plot = drawn[0].axes[0]
    ticks = plot.get_yticklabels()
    assert [tick.get_text() for tick in ticks] == names(count)
    assert all(tick.get_fontsize() >= 6 for tick in ticks)
    found = boxes(ticks)
    heights = -np.diff(found[:, 1])  # from each to the one below
    assert (heights > 0.62 * (found[:, 3] - found[:, 1]).max()).all(), "letters do not touch"
    everything = boxes([*ticks, *plot.get_xticklabels(), *drawn[0].texts])
    width, height = everything[:, 2:].max(axis=0) - everything[:, :2].min(axis=0)
    assert width <= picture.shape[1], "nothing is cut off"
    assert height <= picture.shape[0]
    below = boxes(drawn[0].texts)
    matrix = boxes([*ticks, *plot.get_xticklabels()])
    apart = (below[:, None, 0] >= matrix[:, 2]) | (below[:, None, 3] <= matrix[:, 1])
    assert apart.all(), "the mistakes are not on the matrix"
    assert picture.shape[1] <= 1.03 * canvas.PAGE * DENSITY, "it fits on a page"


def test_a_confusion_matrix_shows_shares_as_darkness_and_in_numbers(drawn: list[Figure]) -> None:
    shares = np.array([[0.75, 0.25], [0.0, 1.0]])
    confusion(shares, ["a", "b"], [])
    plot = drawn[0].axes[0]
    assert [text.get_text() for text in plot.texts] == ["75", "25", "100"]
    np.testing.assert_array_equal(plot.images[0].get_array(), shares)


def test_boxes_that_overlap_are_moved_apart_and_others_stay() -> None:
    middles = np.array([[0.0, 0.0], [1.0, 1.0], [50.0, 0.0], [0.0, 0.0]])
    moved = scatter.separated(middles, np.full((4, 2), (10.0, 4.0)))
    np.testing.assert_array_equal(moved[2], [50, 0])
    np.testing.assert_array_equal(moved[:, 0], middles[:, 0])
    heights = np.sort(moved[[0, 1, 3], 1])
    assert (np.diff(heights) >= 4 - 0.02).all()
    assert moved[1, 1] > moved[0, 1], "what was above stays above"


def test_a_scatter_names_each_class_once_in_its_color(drawn: list[Figure]) -> None:
    places = np.random.RandomState(0).randn(40, 2)
    label = np.arange(40) % 10
    scatter.scatter(places, label, names(10))
    plot = drawn[0].axes[0]
    assert [text.get_text() for text in plot.texts] == names(10)
    looks = {(tuple(each.get_facecolor()[0]), each.get_paths()[0].vertices.shape) for each in plot.collections}
    assert len(looks) == 10, "color and marker tell ten classes apart"
    left, bottom, right, top = boxes(plot.texts).T
    apart = (left[:, None] >= right - 1) | (right[:, None] <= left + 1)
    apart |= (bottom[:, None] >= top - 1) | (top[:, None] <= bottom + 1)
    assert (apart | np.eye(10, dtype=bool)).all(), "no name is on another"
    unlabelled = scatter.scatter(places, np.full(40, -1), [])
    assert unlabelled.std() > 0
    assert not drawn[1].axes[0].texts


@pytest.mark.parametrize("networks", [1, 2])
def test_kernels_have_axes_for_each_layer_and_a_violin_for_each_offset(networks: int, drawn: list[Figure]) -> None:
    rng = np.random.RandomState(0)
    layers = {f"layer{i}.conv": kernels.Layer(rng.randn(3 + 4 * (i == 0), 50), rng.rand(8)) for i in range(7)}
    layers["still"] = kernels.Layer(np.zeros((3, 50)), np.zeros(8))
    kernels.kernels({f"network {i}": layers for i in range(networks)})
    *each, whole = [plot for plot in drawn[0].axes if plot.get_visible()]
    assert [plot.get_title(loc="left") for plot in each] == list(layers)
    assert [tick.get_text() for tick in each[0].get_xticklabels()] == ["-3", "-2", "-1", "0", "+1", "+2", "+3"]
    assert len(each[1].collections) == 3 * networks
    assert len(whole.collections) == len(layers) * networks
    labels = boxes(whole.get_xticklabels())
    assert labels[:, :2].min() >= 0, "nothing is cut off"
    named = [text.get_text()[2:] for text in drawn[0].texts]
    assert named == (["network 0", "network 1"] if networks == 2 else []), "one network alone needs no name"


def test_curves_have_axes_for_each_scalar_of_each_task(drawn: list[Figure]) -> None:
    line = [(1, 2.0), (2, 1.0)]
    curves.overview({("pretrain", "loss"): line, ("linear", "loss"): line, ("pretrain", "contrast_top1"): line})
    plots = [plot for plot in drawn[0].axes if plot.get_visible()]
    assert [plot.get_title(loc="left") for plot in plots] == [
        "pretrain: loss",
        "pretrain: contrast_top1",
        "linear: loss",
    ]
    np.testing.assert_array_equal(plots[0].lines[0].get_xydata(), line)


def test_names_in_other_scripts_are_no_reason_to_stop() -> None:
    assert confusion(np.eye(2), ["\u8df3\u821e", "tai chi"], []).std() > 0
