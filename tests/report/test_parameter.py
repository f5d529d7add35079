"""One number of the method against every metric."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.report.conftest import marks
from vidssl.report.canvas import COLORS
from vidssl.report.parameter import draw, find_parameter, published_marks, section, spread_out
from vidssl.report.runs import Setting, Trial


def setting(label: str, *values: float, name: str = "linear.top1", **method: object) -> Setting:
    config = {"method": {"contrast": {"dim": 64, "shuffle_bn": True}, **method}}
    runs = [Trial(seed, "done", [], Path(label), {name: value}, "", config) for seed, value in enumerate(values)]
    return Setting(label, runs)


def fame(label: str, *values: float, beta: float, apply_to: str = "single", background: str = "inter") -> Setting:
    return setting(label, *values, name="linear.top1", beta=beta, apply_to=apply_to, background=background)


def betas() -> list[Setting]:
    """As sweeps=fame_beta: the baseline has a beta, which does nothing, and another background."""
    both = {"apply_to": "both"}
    return [
        fame("baseline", 40.0, beta=0.5, background="none"),
        fame("beta 0.7", 70.0, beta=0.7),
        fame("beta 0.7 both", 71.0, beta=0.7, **both),
        fame("beta 0.3", 50.0, 60.0, beta=0.3),
        fame("beta 0.3 both", 51.0, beta=0.3, **both),
    ]


def found(settings: list[Setting], baseline: str | None = None) -> tuple | None:
    it = find_parameter(settings, baseline)
    if it is None:
        return None
    lines = {name: [(number, setting.label) for number, setting in line] for name, line in it.lines.items()}
    return it.key, lines, [setting.label for setting in it.beside]


def test_a_number_times_a_word_is_a_line_for_each_word_and_the_baseline_stands_beside() -> None:
    assert found(betas(), "baseline") == (
        "method.beta",
        {
            "apply_to single": [(0.3, "beta 0.3"), (0.7, "beta 0.7")],
            "apply_to both": [(0.3, "beta 0.3 both"), (0.7, "beta 0.7 both")],
        },
        ["baseline"],
    )
    assert found(betas()) is None, "unless it is called the baseline, there are three keys"
    early = betas()[:2]
    assert found(early, "baseline") is None, "one beta so far"


def test_a_number_alone_is_one_line_and_settings_without_it_stand_beside() -> None:
    gammas = [setting(str(gamma), 50.0, gamma=gamma, map=None) for gamma in (0.0, 0.5, 0.1)]
    alone = ("method.gamma", {"": [(0.0, "0.0"), (0.1, "0.1"), (0.5, "0.5")]}, [])
    assert found(gammas) == alone
    assert found(gammas, "0.0") == alone, "a baseline that has the number is a point of the line"
    assert found([*gammas, setting("moco", 40.0, queue=16)]) == (*alone[:2], ["moco"])
    assert found([*gammas, setting("none", 40.0, gamma=None, map=None)]) == (*alone[:2], ["none"])


@pytest.mark.parametrize(
    "settings",
    [
        [setting("a", 1.0, mask="fame"), setting("b", 1.0, mask="grid")],
        [setting("a", 1.0, beta=0.3, gamma=1), setting("b", 1.0, beta=0.5, gamma=2)],
        [setting("a", 1.0, beta=0.3, x="p", y="p"), setting("b", 1.0, beta=0.5, x="q", y="q")],
        [setting("a", 1.0, beta=0.3), setting("b", 1.0, beta=0.3), setting("c", 1.0, beta=0.5)],
        [setting("a", 1.0, beta=0.3, x="p"), setting("b", 1.0, beta=0.5, x="q")],
        [setting("a", 1.0, hidden=True), setting("b", 1.0, hidden=False)],
        [setting("a", 1.0, beta=0.3)],
        [Setting("a", [Trial(0, "missing", [])])],
    ],
    ids=[
        "words",
        "two numbers",
        "two words",
        "differ outside",
        "both at once",
        "not a number",
        "one setting",
        "no configuration",
    ],
)
def test_settings_that_do_not_fit_have_no_such_plot(settings: list[Setting]) -> None:
    assert found(settings) is None


def test_points_are_at_their_numbers(drawn: list[Figure]) -> None:
    settings = [fame(str(beta), value, beta=beta) for beta, value in ((0.3, 0.0), (0.5, 50.0), (0.7, 100.0))]
    draw(find_parameter(settings, None), "linear.top1", None)
    plot = drawn[0].axes[0]
    assert marks(plot, "mean", COLORS[0]) == [(0.3, 0), (0.5, 50), (0.7, 100)]
    assert marks(plot, "seed", COLORS[0]) == [(0.3, 0), (0.5, 50), (0.7, 100)]
    assert [label.get_text() for label in plot.get_xticklabels()] == ["0.3", "0.5", "0.7"]
    assert plot.get_ylim() == (0, 100)
    assert sum(plot.get_xlim()) == pytest.approx(1), "the middle one is in the middle"


def test_the_baseline_is_a_dashed_line_at_its_mean_and_each_seed_has_a_point(drawn: list[Figure]) -> None:
    draw(find_parameter(betas(), "baseline"), "linear.top1", None)
    plot = drawn[0].axes[0]
    (dashed,) = [line for line in plot.lines if line.get_linestyle() == "--"]
    assert list(dashed.get_ydata()) == [40.0, 40.0]
    assert (len(marks(plot, "seed", COLORS[0])), len(marks(plot, "mean", COLORS[0]))) == (3, 2)


PUBLISHED = {
    "source": "a poster",
    "columns": ["UCF101", "HMDB51"],
    "rows": {"beta 0.3": [82.0, "-"], "baseline": [75.8, 45.5]},
}


def test_published_metrics_are_hollow_marks_at_the_same_position(drawn: list[Figure]) -> None:
    settings = betas()
    assert published_marks(settings[3], PUBLISHED) == [("circle", "UCF101", 82.0)]
    assert published_marks(settings[1], PUBLISHED) == []
    shown = section(settings, "baseline", PUBLISHED)
    plot = drawn[0].axes[0]
    (published,) = marks(plot, "circle", COLORS[0])
    assert published == (min(x for x, _ in marks(plot, "mean", COLORS[0])), 82.0), "at beta 0.3"
    left = plot.get_xlim()[0]
    assert marks(plot, "circle", "#000000") == [(left, 75.8)]
    assert marks(plot, "square", "#000000") == [(left, 45.5)]
    assert "beta 0.3, published, UCF101: 82" in shown.plots[0][1]
    assert [entry.text for entry in shown.legend] == [
        "apply_to single", "apply_to both", "baseline", "mean", "one seed", "published, UCF101", "published, HMDB51",
    ]  # fmt: skip


def test_metrics_of_another_kind_are_not_beside_the_published_ones(drawn: list[Figure]) -> None:
    pair = [setting(str(beta), 5.0, name="retrieve.R@1", beta=beta) for beta in (0.3, 0.5)]
    shown = section(pair, None, {**PUBLISHED, "rows": {"0.3": [82.0, 51.6]}})
    assert [title for title, _ in shown.plots] == ["R@1"]
    assert marks(drawn[0].axes[0], "mean")
    assert not marks(drawn[0].axes[0], "circle")
    assert "published" not in str(shown.legend)


def test_numbers_of_very_different_size_are_at_equal_distances() -> None:
    assert spread_out([0.1, 0.3, 0.7]) == {0.1: 0.1, 0.3: 0.3, 0.7: 0.7}
    assert spread_out([0, 256, 1024, 65536]) == {0: 0, 256: 1, 1024: 2, 65536: 3}


@pytest.mark.parametrize("numbers", [[0.001, 0.002, 0.003, 0.007], [16, 256, 65536], [0, 0.25, 0.5, 0.75, 1]])
def test_names_of_numbers_do_not_overlap(numbers: list[float], drawn: list[Figure]) -> None:
    draw(find_parameter([fame(str(beta), 50.0, beta=beta) for beta in numbers], None), "linear.top1", None)
    boxes = [label.get_window_extent() for label in drawn[0].axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
