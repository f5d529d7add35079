from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vidssl.engine import disk
from vidssl.engine.checkpoint import save_state, write_atomically
from vidssl.engine.disk import DiskError


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("file", "is a file"),
        ("file/run", "is a file"),
        ("file/deep/run", "is a file"),
        ("nothing/run", "is a link to what is not there"),
        ("new/" + 300 * "a", "name too long"),
        (300 * "a", "name too long"),
        ("new/deep/run", None),
        (".", None),
    ],
)
def test_a_folder_that_cannot_be_made_is_known_before(folder: str, told: str | None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nothing").symlink_to(tmp_path / "no")
    lines = disk.unwritable("output", tmp_path / folder)
    assert len(lines) == (told is not None)
    assert all(line.startswith(f"output={tmp_path / folder}: cannot be made (") and told in line for line in lines)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "nothing"], "nothing is made"


def test_read_only_file_systems_are_known_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("os.statvfs", lambda *_: ReadOnly)
    assert disk.cannot_be_made(tmp_path / "run") == f"read-only file system: {tmp_path}"
    assert "cannot be written (read-only file system)" in disk.unwritable("output", tmp_path)[0]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, r"no space left \(.* free, .* needed\); the same command goes on when there is room"),
        (errno.EDQUOT, r"the quota is used up \(.* free, .* needed\)"),
        (errno.EROFS, "read-only file system; the same command goes on when it can be written"),
        (errno.EIO, "the disk answers with an input/output error"),
    ],
)
def test_a_file_that_a_disk_does_not_take_is_told_in_a_line_and_leaves_nothing(
    number: int, told: str, tmp_path: Path
) -> None:
    def write(file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(number, os.strerror(number), str(file))

    (tmp_path / "last.pt").write_bytes(b"whole")
    with pytest.raises(DiskError, match=told) as error:
        write_atomically(tmp_path / "last.pt", write, lambda: 5)
    assert "\n" not in str(error.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("last.pt", b"whole")]


def test_what_is_no_matter_of_disks_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError), disk.writing(tmp_path / "x"):
        raise KeyError("x")
    assert disk.translate_error(FileNotFoundError(2, "no such file", "x")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_state_on_a_full_disk_says_how_much_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: opened(Path("/dev/full"), *mode))
    with pytest.raises(DiskError, match=r"no space left \(.* free, .* needed\)"):
        save_state(tmp_path / "last.pt", {"weights": [0.0] * 100_000})
