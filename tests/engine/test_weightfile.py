"""Whatever file a user gives as weights: what is harmless is read, anything else answered in one line."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import shlex
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vidssl.engine.weightfile import read_file
from vidssl.registry import ConfigError

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3)}


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_file(path)
    (line,) = error.value.problems
    assert line.startswith(f"checkpoint={path}: ")
    assert line.isprintable()
    assert "Weights only load failed" not in line
    return line.removeprefix(f"checkpoint={path}: ")


def saved(value: Any, **options: Any) -> bytes:
    torch.save(value, file := io.BytesIO(), **options)
    return file.getvalue()


def as_safetensors(folder: Path) -> bytes:
    save_file(WEIGHTS, folder / "made")
    return (folder / "made").read_bytes()


@pytest.mark.parametrize("name", ["a.pt", "a.pth.tar", "a.safetensors", "a", "a.txt"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_what_a_file_holds_decides_and_not_its_name(name: str, kind: str, tmp_path: Path) -> None:
    content = as_safetensors(tmp_path) if kind == "safetensors" else saved(
        WEIGHTS, _use_new_zipfile_serialization=kind == "zip"
    )  # fmt: skip
    (tmp_path / name).write_bytes(content)
    found = read_file(tmp_path / name)
    assert torch.equal(found.value["layer.weight"], WEIGHTS["layer.weight"])
    assert (found.header is not None) == (kind == "safetensors")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("spelling", ["numpy.core", "numpy._core"])
def test_numbers_of_numpy_are_read_whichever_version_wrote_them(spelling: str, legacy: bool, tmp_path: Path) -> None:
    beside = {
        "best": np.float64(71.25), "half": np.float16(0.5), "epoch": np.int64(3), "done": np.bool_(True),
        "mean": np.array([0.5, 0.25], dtype=np.float32), "big": np.arange(3, dtype=">i4"), "arch": np.str_("r3d"),
    }  # fmt: skip
    content = saved({"state_dict": WEIGHTS, **beside}, _use_new_zipfile_serialization=not legacy)
    if legacy:
        content = content.replace(b"cnumpy._core.", f"c{spelling}.".encode())
    else:
        content = rewritten(content, lambda pickled: pickled.replace(b"cnumpy._core.", f"c{spelling}.".encode()))
    assert f"c{spelling}.multiarray".encode() in content
    (tmp_path / "a.pth").write_bytes(content)
    found = read_file(tmp_path / "a.pth").value
    assert torch.equal(found["state_dict"]["layer.weight"], WEIGHTS["layer.weight"])
    for name, value in beside.items():
        assert found[name].dtype == value.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], value)


def rewritten(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """An archive of torch.save with another pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            held = before.read(name)
            after.writestr(name, change(held) if name.endswith("/data.pkl") else held)
    return out.getvalue()


class Meter:
    average = 0.5


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"state_dict": WEIGHTS, "meter": Meter()}, "tests.engine.test_weightfile.Meter"),
        ({"state_dict": WEIGHTS, "path": Path("a")}, "pathlib.PosixPath"),
        ({"state_dict": WEIGHTS, "history": defaultdict(list)}, "collections.defaultdict"),
        ({"state_dict": WEIGHTS, "names": np.array(["a", None])}, "numpy.dtypes.ObjectDType"),
        (nn.Linear(3, 2), "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_an_object_in_the_way_is_named_with_what_to_do(value: Any, name: str, legacy: bool, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(saved(value, _use_new_zipfile_serialization=not legacy))
    line = refused(tmp_path / "a.pth")
    assert f"it holds {name}, which is neither tensor, number nor string" in line
    assert "write the weights alone to a new file" in line


@pytest.mark.parametrize("module", [False, True])
def test_the_command_that_is_told_writes_the_weights_alone(
    module: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Linear(3, 2)
    file = tmp_path / 'it\'s "$HOME".pth'
    torch.save(network if module else {"model": network.state_dict(), "meter": Meter()}, file)
    told = refused(file)
    python, option, code = shlex.split(told[told.index("python -c ") :])
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(code, {"__builtins__": builtins})  # as a user would who trusts the file
    written = read_file(tmp_path / "weights.pth").value
    assert torch.equal(written["weight"], network.weight)
    assert list(written) == ["weight", "bias"]


def npz() -> bytes:
    np.savez(file := io.BytesIO(), a=np.zeros(3))
    return file.getvalue()


def script() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"):
            archive.writestr(name, b"")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<title>\x1b[1mNot found", "not a PyTorch file: begins with b'<!DOCTYPE html>\\n'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a PyTorch file"),
        (b'{"weights": 1}', "not a PyTorch file"),
        (bytes(4000), "not a PyTorch file"),
        (b"\x1f\x8b\x08\x00 and so on", "not a PyTorch file"),
        (b"PK\x03\x04 and nothing more", "damaged or incomplete: the end of its zip archive"),
        (npz(), "not a PyTorch file, but another zip archive, of 'a.npy'"),
        (script(), "a program of TorchScript, not weights"),
        (pickle.dumps({"w": np.zeros(3)}), "a pickle that torch.save did not write; write the weights alone"),
        (saved(WEIGHTS)[:-100], "damaged or incomplete"),
        (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-8], "damaged or incomplete"),
        (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:100], "damaged or incomplete"),
        (rewritten(saved(WEIGHTS), lambda pickled: pickled[:20]), "damaged or incomplete"),
        (rewritten(saved(WEIGHTS), lambda _: b"\x80\x02\xff"), "damaged, or written with another pickle_protocol"),
        (saved({**WEIGHTS, "a": np.float64(1)}, pickle_protocol=4), "written with another pickle_protocol"),
        ((8).to_bytes(8, "little") + b"{}", "a safetensors file that is damaged or incomplete"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_and_damaged_files_are_answered_in_a_line(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert told in refused(tmp_path / "a.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_wherever_a_file_is_cut_the_answer_is_a_line(legacy: bool, tmp_path: Path) -> None:
    whole = saved({"state_dict": WEIGHTS}, _use_new_zipfile_serialization=not legacy)
    for size in range(0, len(whole), 7):
        (tmp_path / "a.pth").write_bytes(whole[:size])
        refused(tmp_path / "a.pth")


def test_a_file_that_may_not_be_read_is_answered_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "a.pth")

    (tmp_path / "a.pth").write_bytes(saved(WEIGHTS))
    monkeypatch.setattr(Path, "open", forbidden)  # whoever runs the tests may be allowed everything
    assert refused(tmp_path / "a.pth") == "cannot be read (Permission denied)"


def test_names_in_a_file_cannot_command_the_terminal(tmp_path: Path) -> None:
    pickled = b"\x80\x02cevil\x1b[2J\nThing\n)R."
    (tmp_path / "a.pth").write_bytes(rewritten(saved(WEIGHTS), lambda _: pickled))
    assert "it holds evil" in refused(tmp_path / "a.pth")
    assert not os.path.exists("executed")
