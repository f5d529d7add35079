"""What the documentation says to do is done here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DATA, HOME, PRETRAIN, read_json


def blocks(text: str) -> dict[str, str]:
    """path -> content of each fenced block that follows a line with its path."""
    return {path: content for path, _, content in re.findall(r"^`([\w/.]+)`\n\n```(\w+)\n(.*?)^```", text, re.M | re.S)}


@pytest.mark.slow
def test_a_method_is_one_python_file_and_one_yaml(tmp_path: Path, rendered: str) -> None:
    """docs/adding-a-method.md, in a copy of the repository."""
    copy = tmp_path / "copy"
    for part in ("vidssl", "conf", "sweeps"):
        shutil.copytree(HOME / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HOME / "launch.py", copy)
    files = blocks((HOME / "docs/adding-a-method.md").read_text())
    assert sorted(files) == ["conf/method/speed.yaml", "vidssl/methods/speed.py"]
    for path, content in files.items():
        assert not (copy / path).exists()
        (copy / path).write_text(content)

    def launched(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "launch.py", "method=speed", *DATA, f"dataset.root={rendered}", *words]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)

    done = launched(*PRETRAIN, "task=[pretrain,knn]", "frame_stride=2", "pretrain.epochs=1", "output=run")
    assert done.returncode == 0, done.stderr
    result = read_json(copy / "run/result.json")
    assert "speed_top1" in result["pretrain"]
    assert "top1" in result["knn"]
    method = (copy / "vidssl/methods/speed.py").read_text()
    (copy / "vidssl/methods/speed.py").write_text(method.replace("self.augment", "self.color"))
    assert (
        launched(*PRETRAIN, "task=pretrain", "frame_stride=2", "pretrain.max_steps=1", "output=other").returncode == 0
    )
    wrong = launched("method.hiden=3", "pretrain.batch_size=8")
    assert wrong.returncode == 2
    assert "Did you mean method.hidden?" in wrong.stderr
    assert "must lie in [1, inf)" in launched("method.hidden=0", *PRETRAIN).stderr


def test_every_recipe_stands_in_the_table_of_reproductions() -> None:
    table = re.findall(r"^\| `(\w+)` \|", (HOME / "docs/reproduction.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(f.stem for f in (HOME / "conf/experiment").glob("[!_]*.yaml"))


def test_every_recipe_names_its_source_and_what_was_published() -> None:
    for file in (HOME / "conf/experiment").glob("[!_]*.yaml"):
        text = file.read_text()
        for word in (f"experiment={file.stem} ", "# Source: ", "Original hardware: ", "Published: ", "Changed: "):
            assert word in text, f"{file.name}: {word}"
