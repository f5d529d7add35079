"""Curves from metrics.jsonl."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.report.conftest import make_run, tooltips
from vidssl.report.canvas import COLORS
from vidssl.report.curves import Curve, draw, mean_curve, section, thinned
from vidssl.report.runs import Trial, read_curves, read_settings


def lines(task: str, *losses: float, **more: float) -> list[dict]:
    return [{"task": task, "step": i + 1, "epoch": 0.1, "loss": loss, **more} for i, loss in enumerate(losses)]


def test_losses_and_accuracies_of_training_tasks_are_curves(tmp_path: Path) -> None:
    found = [*lines("pretrain", 3.0, float("nan"), 2.0, contrast_top1=0.5, lr=0.1), *lines("linear", 1.0, 0.5)]
    found += [{"task": "linear", "step": 2, "epoch": 1.0, "top1": 40.0}]  # one point is no curve
    found += [{"task": "knn", "step": step, "epoch": 0.0, "top1": 30.0} for step in (1, 2)]  # nothing is trained
    run = make_run(tmp_path / "0", [], lines=found)
    assert read_curves(run) == {
        ("pretrain", "loss"): [(1, 3.0), (3, 2.0)],
        ("pretrain", "contrast_top1"): [(1, 0.5), (2, 0.5), (3, 0.5)],
        ("linear", "loss"): [(1, 1.0), (2, 0.5)],
    }


def test_a_half_written_last_line_is_skipped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "0", [], lines=lines("pretrain", 3.0, 2.0))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"task": "pretrain", "step": 3, "lo')
    assert read_curves(run) == {("pretrain", "loss"): [(1, 3.0), (2, 2.0)]}
    assert read_curves(tmp_path / "nowhere") == {}


def test_the_mean_is_over_the_seeds_that_have_come_so_far() -> None:
    assert mean_curve([[(1, 2.0), (2, 4.0), (3, 6.0)], [(1, 4.0), (2, 0.0)]]) == [(1, 3.0), (2, 2.0), (3, 6.0)]


def test_long_curves_keep_their_mean_and_their_end() -> None:
    curve = [(step, float(step % 7)) for step in range(1, 5001)]
    thin = thinned(curve)
    assert len(thin) == 200
    assert thin[-1][0] == 5000
    assert statistics.fmean(value for _, value in thin) == pytest.approx(statistics.fmean(v for _, v in curve))
    assert thinned(curve[:200]) == curve[:200]


def test_a_setting_has_a_thin_line_for_each_seed_and_a_thick_mean_and_stopped_runs_a_cross(drawn: list[Figure]) -> None:
    done, failed = Trial(0, "done", []), Trial(1, "failed", [])
    first = [Curve(done, [(1, 1.0), (2, 2.0), (4, 3.0)]), Curve(failed, [(1, 2.0), (2, 3.0)], is_broken=True)]
    alone = [Curve(done, [(1, 2.0), (4, 1.0)])]
    svg = draw([first, [], alone], "pretrain", "loss")
    lines = [line for line in drawn[0].axes[0].lines if line.get_linestyle() != "None"]
    one, _, three = COLORS[:3]
    looks = [(line.get_color(), len(line.get_xdata()), line.get_alpha()) for line in lines]
    assert looks == [(one, 3, 0.35), (one, 2, 0.35), (one, 3, None), (three, 2, None)]
    assert tooltips(svg) == ["pretrain: loss over the steps", "seed 1: failed"]


def test_the_ends_of_the_vertical_axis_are_round(drawn: list[Figure]) -> None:
    draw([[Curve(Trial(0, "done", []), [(5, 5.7), (10, 2.2), (395, 1.3)])]], "pretrain", "loss")
    plot = drawn[0].axes[0]
    assert plot.get_ylim() == (1, 6)
    assert plot.get_xlim() == (0, 395)


def test_a_running_run_ends_where_it_is(drawn: list[Figure]) -> None:
    whole = Curve(Trial(0, "done", []), [(step, 1.0) for step in range(1, 101)])
    half = Curve(Trial(0, "running", []), [(step, 2.0) for step in range(1, 51)])
    draw([[whole], [half]], "pretrain", "loss")
    plot = drawn[0].axes[0]
    assert [line.get_xdata()[-1] for line in plot.lines] == [100, 50]
    assert plot.get_xlim() == (0, 100)
    assert plot.get_ylim() == (1, 2)


def test_tasks_are_in_the_order_in_which_they_ran_and_a_cross_only_where_a_run_stopped(tmp_path: Path) -> None:
    logged = [*lines("pretrain", 3.0, 2.0, contrast_top1=0.1), *lines("linear", 1.0, 0.5)]
    make_run(tmp_path / "0", ["method=moco"], lines=lines("pretrain", 3.0, 2.0, turn_top1=0.3))
    make_run(tmp_path / "1", ["method=fame"], lines=logged, status="failed")
    shown = section(read_settings(tmp_path))
    assert [title for title, _ in shown.plots] == [
        "pretrain: loss", "pretrain: turn_top1", "pretrain: contrast_top1", "linear: loss",
    ]  # fmt: skip
    assert ["seed 0: failed" in svg for _, svg in shown.plots] == [False, False, False, True]
    assert "a run that stopped before its end" in [entry.text for entry in shown.legend]
