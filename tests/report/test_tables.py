"""Tables of runs that are not all done."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.report.conftest import linear, make_run
from vidssl.report.runs import Setting, Trial, by_folds, read_settings
from vidssl.report.tables import by_run, differences, every_run, markdown, mean, not_done, over_folds, summary


def trial(seed: int, top1: float | None = None, status: str = "done", **more) -> Trial:
    metrics = {} if top1 is None else {"linear.top1": top1}
    return Trial(seed, status, [f"seed={seed}"], Path(f"run-{seed}"), metrics, **more)


BROKEN = Setting(
    "beta 0.3",
    [
        trial(0, 70.5),
        trial(1, status="failed", error="NotFinite: loss | nan"),
        trial(2, 71.9),
        Trial(3, "missing", ["seed=3"]),
    ],
)
WHOLE = Setting("baseline", [trial(seed, 60.0 + seed) for seed in range(4)])


def test_means_say_over_how_many_seeds_where_some_lack() -> None:
    assert mean(BROKEN, "linear.top1") == "71.2 +- 1.0 (2 of 4)"
    assert mean(WHOLE, "linear.top1") == "61.5 +- 1.3"
    assert mean(Setting("x", BROKEN.runs[:2]), "linear.top1") == "70.5 (1 of 2)"
    assert mean(Setting("x", BROKEN.runs[1:2]), "linear.top1") == "-"


def test_every_planned_run_has_a_row_that_says_how_it_is() -> None:
    assert by_run([BROKEN]).rows == [
        ["beta 0.3", "0", "70.5"],
        ["", "1 (failed)", "-"],
        ["", "2", "71.9"],
        ["", "3 (missing)", "-"],
        ["", "mean", "71.2 +- 1.0 (2 of 4)"],
    ]


def test_differences_are_over_the_seeds_that_both_have() -> None:
    assert differences([WHOLE, BROKEN], "baseline").rows == [["beta 0.3 - baseline", "+10.2 (+10.5, +9.9)"]]


def test_runs_that_are_not_done_are_listed_with_the_reason_and_what_to_do() -> None:
    failed, missing = not_done([WHOLE, BROKEN]).rows
    assert failed[:5] == ["beta 0.3", "1", "failed", "run-1", "NotFinite: loss | nan"]
    assert "retry_failed=true" in failed[5]
    assert missing[:5] == ["beta 0.3", "3", "missing", "-", "-"]
    assert "same command" in missing[5]
    assert summary([WHOLE, BROKEN]) == "6 of 8 runs are done, 1 failed, 1 missing"
    assert summary([Setting("x", [trial(0, 1.0)])]) == "1 of 1 runs is done"


def test_an_error_does_not_break_the_markdown_table() -> None:
    row = markdown([not_done([BROKEN])], [], "").splitlines()[4]
    assert row.startswith("| beta 0.3 | 1 | failed | run-1 | NotFinite: loss \\| nan | ")


def test_the_csv_has_a_row_for_missing_runs() -> None:
    table = csv.DictReader(every_run([BROKEN]).splitlines())
    rows = [(row["seed"], row["status"], row["linear.top1"]) for row in table]
    assert rows == [("0", "done", "70.5"), ("1", "failed", ""), ("2", "done", "71.9"), ("3", "missing", "")]


def test_folds_of_one_setting_are_averaged_whatever_their_seeds() -> None:
    def setting(name: str, fold: int, *top1: float) -> Setting:
        words = [f"backbone={name}", f"dataset.fold={fold}"]
        runs = [
            Trial(seed, "done", [*words, f"seed={seed}"], metrics={"linear.top1": x}) for seed, x in enumerate(top1)
        ]
        return Setting(f"{words}", runs)

    settings = [setting("i3d", 1, 50.0, 60.0), setting("i3d", 2, 58.0), setting("i3d", 3, 60.0), setting("c3d", 1, 9.0)]
    settings += [setting("s3d", 1, 40.0), Setting("s3d 2", [Trial(0, "missing", ["backbone=s3d", "dataset.fold=2"])])]
    table = over_folds(by_folds(settings))
    assert table.rows == [["i3d", "1, 2, 3", "57.7 +- 2.5"], ["s3d", "1, 2", "40.0 (1 of 2)"]]
    assert by_folds([WHOLE, BROKEN]) == []


def test_a_sweep_over_folds_is_one_row(tmp_path: Path) -> None:
    for place, top1 in enumerate((70.0, 72.0, 77.0)):
        words = ["task=linear", "dataset=ucf101", f"dataset.fold={place + 1}"]
        make_run(tmp_path / str(place), words, linear(top1))
    settings = read_settings(tmp_path)
    assert [setting.label for setting in settings] == ["1", "2", "3"]
    assert over_folds(by_folds(settings)).rows == [["moco", "1, 2, 3", "73.0 +- 3.6"]]
