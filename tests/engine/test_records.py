from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vidssl.data.manifest import Listing, Video, differences, identity
from vidssl.data.sources import SOURCES
from vidssl.engine import records
from vidssl.registry import FilePath, schema

VIDEOS = [Video("a/1.mp4", 0), Video("b/2.mp4", 1)]
BEFORE = Listing(Path("/job1"), VIDEOS, ("a", "b"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has trained on /job1."""
    (tmp_path / "last.pt").touch()
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config("/job1")))
    record = {"places": {"dataset.root": "/job1"}, "splits": {"train": identity(BEFORE)}}
    records.write_json(tmp_path / "run.json", {"status": "preempted", "data": record})
    return tmp_path


def config(root: str, **more: object) -> dict:
    return {"seed": 0, "resume": "auto", "dataset": {"name": "folder", "root": root}, **more}


def against(now: Listing) -> Callable[[dict], str | None]:
    return lambda splits: differences(identity(now), splits["train"]) if splits else None


@pytest.mark.parametrize(
    ("videos", "classes", "told"),
    [
        (VIDEOS, ("a", "b"), ""),
        (VIDEOS[:1], ("a", "b"), "1 videos (there 2)"),
        ([VIDEOS[0], Video("b/3.mp4", 1)], ("a", "b"), "other names of videos"),
        ([VIDEOS[0], Video("b/2.mp4", 0)], ("a", "b"), "other labels"),
        (VIDEOS, ("a", "c"), "other classes"),
    ],
)
def test_a_run_goes_on_with_its_data_at_another_place_unless_they_differ(
    videos: list[Video], classes: tuple[str, ...], told: str, run: Path
) -> None:
    problems = records.folder_problems(config("/job2"), run, against(Listing(Path("/job2"), videos, classes)))
    assert len(problems) == bool(told)
    assert all("dataset.root=/job2 has other data" in problem for problem in problems)
    assert all(told in problem for problem in problems)


def test_a_run_of_which_no_data_are_known_goes_on_at_the_same_place_alone(run: Path) -> None:
    records.write_json(run / "run.json", {"status": "preempted"})
    assert records.folder_problems(config("/job1"), run, against(BEFORE)) == []
    assert "dataset.root=/job2 (there /job1)" in records.folder_problems(config("/job2"), run, against(BEFORE))[0]


def test_with_other_keys_beside_the_place_a_run_is_another_one(run: Path) -> None:
    assert "seed=1 (there 0)" in records.folder_problems(config("/job2") | {"seed": 1}, run, against(BEFORE))[0]


def test_sizes_are_compared_where_both_have_them() -> None:
    assert differences({**identity(BEFORE), "sizes": "1"}, {**identity(BEFORE), "sizes": "2"}) == "files of other sizes"
    assert differences(identity(BEFORE), {**identity(BEFORE), "sizes": "2"}) == ""


def test_the_last_place_is_kept_and_every_split(run: Path) -> None:
    records.note_data(run, config("/job2"), {"test": identity(BEFORE)})
    splits = {"train": identity(BEFORE), "test": identity(BEFORE)}
    assert records.data_record(run) == {"places": {"dataset.root": "/job2"}, "splits": splits}


def test_every_path_of_a_data_set_is_a_place() -> None:
    paths = {
        f"dataset.{key}" for name in SOURCES.names() for key, kind in schema(SOURCES.get(name)).items()
        if FilePath in (kind, *getattr(kind, "__args__", ()))
    }  # fmt: skip
    assert paths == set(records.PLACES)


def test_a_full_disk_has_room_for_how_the_run_ended(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second file, be it small, fits; the blocks of the first are there."""

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    records.end(run, "failed", "no space left")
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "no space left")
    assert not list(run.glob(".run.json.*"))


def test_the_record_names_the_commit_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(records.__file__).resolve().parents[2]
    assert (home / "launch.py").exists()
    if not (home / ".git").exists():
        pytest.skip("this copy of the code has no history")
    assert len(records.git()["commit"]) == 40
