"""Read weight files of any origin and name, without executing anything in them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shlex
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from vidssl.registry import ConfigError

LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file
LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's magic number as a pickle has it, before PyTorch 1.6
HARMLESS: tuple[Any, ...] = (  # functions and classes that a pickle may name besides tensors
    argparse.Namespace,  # options in BE's checkpoints; a plain record
    *(  # numbers and arrays of NumPy, whose modules had other names before NumPy 2
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (("scalar", np.float64().__reduce__()[0]), ("_reconstruct", np.zeros(0).__reduce__()[0]))
    ),
    np.dtype,
    np.ndarray,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SU"},
)

READ_PICKLE = 'pickle.load(open(FILE, "rb"))'
READ_SAVED = 'torch.load(FILE, map_location="cpu", weights_only=False)'


class Content(NamedTuple):
    value: Any  # of torch.save; of a safetensors file name -> tensor
    header: dict[str, str] | None  # of a safetensors file


def read_file(path: Path) -> Content:
    """Content of a file of torch.save or safetensors.

    Raises ConfigError, one line with the path, for other files and for pickles that hold more than tensors, numbers,
    strings and their containers.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
        if _is_safetensors(head):
            return _read_safetensors(path)
        flaw = _flaw(path, head)
        if flaw is not None:
            raise _refused(path, flaw)
        return Content(_read_torch(path), None)
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror or plain(str(error))})") from None


def _refused(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"checkpoint={path}: {reason}")


def plain(text: str) -> str:
    """First line of an untrusted text, without terminal control characters."""
    line = next(iter(text.strip().splitlines()), "")
    return re.sub(r"\x1b\[[0-9;]*m", "", line).encode("unicode_escape").decode()


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a JSON header and its opening brace."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER


def _read_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 not a dict
            return Content(tensors, file.metadata() or {})
    except SafetensorError as error:
        raise _refused(path, f"a safetensors file that is damaged or incomplete ({plain(str(error))})") from None


def _flaw(path: Path, head: bytes) -> str | None:
    """Reason why this cannot be a file of torch.save, or None."""
    if not head:
        return "is empty"
    if head.startswith(b"PK"):
        return _flaw_of_archive(path)
    if head.startswith(b"\x80"):
        return None if LEGACY in head else f"a pickle that torch.save did not write; {_advice(path, READ_PICKLE)}"
    return f"not a PyTorch file: begins with {head[:16]!a}"


def _flaw_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return "damaged or incomplete: the end of its zip archive cannot be found"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a program of TorchScript, not weights; save network.state_dict() with torch.save"
    if not any(name.endswith("/data.pkl") for name in names):
        return f"not a PyTorch file, but another zip archive, of {ascii(names[0]) if names else 'nothing'}"
    return None


def _read_torch(path: Path) -> Any:
    try:
        with (
            torch.serialization.safe_globals(list(HARMLESS)),
            warnings.catch_warnings(action="ignore"),  # of pickle protocols
            path.open("rb") as file,  # given a path, torch would go by its suffix
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged pickles fail in any way
        raise _refused(path, _why_unread(path, error)) from None


def _why_unread(path: Path, error: Exception) -> str:
    text = str(error)
    named = re.search(r"GLOBAL ([^\s,]+)|<(?:class|function) '?([^\s'>]+)", text)
    if isinstance(error, pickle.UnpicklingError) and named:
        what = f"it holds {plain(named[1] or named[2])}, which is neither tensor, number nor string"
    elif isinstance(error, pickle.UnpicklingError) and "Unsupported operand" in text:
        what = "it is damaged, or written with another pickle_protocol than torch.save's own"
    else:
        return f"damaged or incomplete ({plain(text) or type(error).__name__})"
    return f"cannot be read without executing code: {what}; {_advice(path, READ_SAVED)}"


def _advice(path: Path, read: str) -> str:
    """How to write the weights alone to a new file. read: Python expression that reads FILE."""
    code = (
        f"import pickle, torch; x = {read.replace('FILE', json.dumps(str(path)))}; "
        'x = x.get("state_dict", x.get("model", x)) if isinstance(x, dict) else x; '
        "x = x if isinstance(x, dict) else x.state_dict(); "
        'torch.save({k: torch.as_tensor(v) for k, v in x.items() if hasattr(v, "shape")}, "weights.pth")'
    )
    return (
        "write the weights alone to a new file where this one was written (it executes what is in the file: only if "
        f"you trust it): python -c {shlex.quote(code)}"
    )
