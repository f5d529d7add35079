"""One number of the method against every figure."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from vidssl.reporting.axes import COLORS
from vidssl.reporting.parameter import draw, find_parameter, published_marks, share_names, spread
from vidssl.reporting.runs import Setting, Trial


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


def circles(svg: str, color: str) -> list[tuple[float, float, str]]:
    """x, y and kind (seed, mean, published) of the marks of a color."""
    kinds = {"4": "seed", "5.5": "mean", "5": "published"}
    found = [
        mark for mark in ElementTree.fromstring(svg).iter("circle") if color in (mark.get("fill"), mark.get("stroke"))
    ]
    return [(float(mark.get("cx")), float(mark.get("cy")), kinds[mark.get("r")]) for mark in found]


def test_points_stand_where_their_numbers_are() -> None:
    """beta 0.3, 0.5 and 0.7, figures 0, 50 and 100: the middle one is in the middle of both axes."""
    settings = [fame(str(beta), value, beta=beta) for beta, value in ((0.3, 0.0), (0.5, 50.0), (0.7, 100.0))]
    marks = circles(draw(find_parameter(settings, None), "linear.top1", None), COLORS[0])
    left, middle, right = [mark for mark in marks if mark[2] == "mean"]
    assert middle[:2] == pytest.approx((285, 133), abs=0.1)
    assert (left[0] + right[0]) / 2 == pytest.approx(285, abs=0.1)
    assert (left[1], right[1]) == pytest.approx((254, 12), abs=0.1)
    assert len([mark for mark in marks if mark[2] == "seed"]) == 3


def test_the_baseline_is_a_dashed_line_at_its_mean_and_each_seed_has_a_point() -> None:
    svg = draw(find_parameter(betas(), "baseline"), "linear.top1", None)
    dashed = [line for line in ElementTree.fromstring(svg).iter("polyline") if line.get("stroke-dasharray") == "7 4"]
    (start, end) = [tuple(map(float, place.split(","))) for place in dashed[0].get("points").split()]
    assert len(dashed) == 1
    assert start[1] == end[1]
    assert (start[0], end[0]) == (64, 506)
    kinds = [kind for _, _, kind in circles(svg, COLORS[0])]
    assert (kinds.count("seed"), kinds.count("mean")) == (3, 2)


PUBLISHED = {
    "source": "a poster",
    "columns": ["UCF101", "HMDB51"],
    "rows": {"beta 0.3": [82.0, "-"], "baseline": [75.8, 45.5]},
}


def test_published_figures_are_hollow_marks_at_the_same_place() -> None:
    settings = betas()
    assert published_marks(settings[3], PUBLISHED) == [("circle", "UCF101", 82.0)]
    assert published_marks(settings[1], PUBLISHED) == []
    marks = circles(draw(find_parameter(settings, "baseline"), "linear.top1", PUBLISHED), COLORS[0])
    (published,) = [mark for mark in marks if mark[2] == "published"]
    assert published[0] == min(mark[0] for mark in marks), "at beta 0.3"
    assert published[1] == min(mark[1] for mark in marks), "82 is above all"


def test_figures_of_another_kind_are_not_beside_the_published_ones() -> None:
    pair = [setting(str(beta), 5.0, name="retrieve.R@1", beta=beta) for beta in (0.3, 0.5)]
    rows = {"rows": {"0.3": [82.0, 51.6]}}
    assert share_names(pair) == ["retrieve.R@1"]
    svg = draw(find_parameter(pair, None), "retrieve.R@1", {**PUBLISHED, **rows})
    assert not [mark for mark in circles(svg, COLORS[0]) if mark[2] == "published"]


def test_numbers_of_very_different_size_stand_evenly() -> None:
    assert spread([0.1, 0.3, 0.7]) == {0.1: 0.1, 0.3: 0.3, 0.7: 0.7}
    assert spread([0, 256, 1024, 65536]) == {0: 0, 256: 1, 1024: 2, 65536: 3}
