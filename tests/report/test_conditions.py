from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.report.conftest import make_run, marks, tooltips
from vidssl.report import conditions
from vidssl.report.runs import read_settings
from vidssl.tasks.report import show_report


def measured(preference: float, *, rendered: bool = True) -> dict[str, float]:
    """What task=bias leaves."""
    found = {"masked_motion_preference": preference, "same_motion_likeness": 0.6, "same_background_likeness": 0.3}
    found |= {"masked_motion_preference_low": preference - 5, "masked_motion_preference_high": preference + 5}
    if rendered:
        names = ("motion_preference", "swap_top1")
        found |= {f"{name}{end}": 40.0 + add for name in names for end, add in (("", 0), ("_low", -6), ("_high", 6))}
    for change in ("", "frozen_", "other_background_"):
        found |= {f"{change}top1{end}": 70.0 + add for end, add in (("", 0), ("_low", -4), ("_high", 4))}
    return found | {"frozen_likeness": -0.1, "other_background_likeness": 0.5, "frozen_top1": 12.0}


def rows(table: conditions.Table) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table.rows}


def test_one_run_has_a_row_for_each_change_with_intervals_and_differences() -> None:
    found = rows(conditions.table(measured(80.0)))
    assert found["as filmed"] == ["70.0 (66.0 to 74.0)", "-", "-"]
    assert found["frozen"] == ["12.0 (66.0 to 74.0)", "-58.0", "-0.10"]
    assert found["other background"][2] == "0.50"
    assert found["other background, rendered"][0] == "40.0 (34.0 to 46.0)"
    assert "reversed" not in found, "not measured"


@pytest.mark.parametrize(("preference", "word"), [(80.0, "motion"), (52.0, "undecided"), (20.0, "background")])
def test_the_word_needs_the_whole_interval_on_one_side(preference: float, word: str) -> None:
    assert conditions.follows(measured(preference, rendered=False)) == word


def test_rendered_pairs_decide_where_there_are_some() -> None:
    assert conditions.follows(measured(80.0)) == "background"


def test_every_metric_has_a_meaning() -> None:
    told = "\n".join(conditions.legend(measured(80.0)))
    for row in ("frozen", "other background, rendered", "pair: same motion", "motion preference, by masks"):
        assert f"{row}" in told


@pytest.fixture
def two_methods(tmp_path: Path) -> Path:
    for method, preference in (("moco", 20.0), ("fame", 80.0)):
        for seed in (0, 1):
            folder = tmp_path / f"{method}-{seed}"
            result = {"linear": {"top1": 50.0}, "bias": measured(preference + seed)}
            make_run(folder, [f"method={method}", f"seed={seed}"], result, seed=seed, method={"name": method})
    return tmp_path


def test_many_runs_are_a_row_for_each_setting(two_methods: Path) -> None:
    table, legend = conditions.summary(read_settings(two_methods))
    at = table.head.index("motion preference, by masks")
    assert {row[0]: row[at] for row in table.rows} == {"moco": "20.5 +- 0.7", "fame": "80.5 +- 0.7"}
    assert legend


def test_nothing_is_shown_where_nobody_asked(tmp_path: Path) -> None:
    make_run(tmp_path / "a", ["seed=0"], {"linear": {"top1": 50.0}})
    settings = read_settings(tmp_path)
    assert conditions.summary(settings) == (None, [])
    assert conditions.section(settings) is None


def test_the_page_shows_the_plot_with_a_mark_for_each_run_and_mean(two_methods: Path) -> None:
    show_report(two_methods)
    page = (two_methods / "report.html").read_text()
    assert "<h2>Background or motion?</h2>" in page
    drawing = next(found for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "background or motion?" in found)
    titles = tooltips(drawing.replace("xlink:", ""))
    for told in ("moco: 20.00", "moco: 21.00", "moco: 20.50", "fame: 80.50"):
        assert told in titles
    assert "| fame |" in (two_methods / "report.md").read_text()


def test_one_run_has_its_intervals_and_several_their_means(drawn: list[Figure]) -> None:
    conditions.draw([("", [measured(80.0)])])
    conditions.draw([("a", [measured(20.0), measured(30.0)])])
    (accuracy, likeness, preference), (*_, second) = (sheet.axes for sheet in drawn)
    assert [label.get_text() for label in accuracy.get_yticklabels()] == [
        "as filmed", "other background", "other background, rendered", "frozen",
    ]  # fmt: skip
    assert marks(accuracy, "mean")[0] == (70.0, 0)
    assert [list(line.get_xdata()) for line in accuracy.lines if len(line.get_xdata()) == 2][1] == [66.0, 74.0]
    assert (-0.1, 3) in marks(likeness, "mean")
    assert likeness.get_xlim() == (-0.5, 1)
    assert marks(preference, "mean") == [(40.0, 0), (80.0, 1)]
    assert marks(second, "mean")[1] == (25.0, 1)
    assert [x for x, row in marks(second, "seed") if row == 1] == [20.0, 30.0]
