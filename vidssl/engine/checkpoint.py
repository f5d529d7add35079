"""Training state on disk: plain containers, written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vidssl.engine import disk
from vidssl.engine.official import read_official
from vidssl.engine.text import printable
from vidssl.engine.weightfile import read_file
from vidssl.registry import ConfigError

FORMAT = 1


def write_atomically(path: Path, write: Callable[[Path], None], needed: Callable[[], int] | None = None) -> None:
    """Have `write` fill a temporary file in the same folder, then put it in place: readers see the old or the new.

    needed: bytes of the file, for what is said where there is no room. Raises DiskError then.
    """
    with disk.writing(path, needed):
        _replace(path, write)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    text = printable(text)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"), lambda: len(text.encode()))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """state: tensors and plain values only; `load_state` reads it."""
    whole = {"format": FORMAT, **state}

    def write(file: Path) -> None:
        with file.open("wb") as out:  # torch's own writer would not say why it cannot write
            torch.save(whole, out)

    def needed() -> int:
        counting = Counting()
        torch.save(whole, counting)
        return counting.bytes

    write_atomically(path, write, needed)


class Counting(io.RawIOBase):
    """A file that keeps nothing but its length."""

    bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        return len(data)


def keep_copy(state: Path, copy: Path) -> None:
    """Another name for a state, which stays when the state is replaced. Where the file system has no links, a copy."""

    def link_or_copy(file: Path) -> None:
        try:
            os.link(state, file)
        except OSError:
            shutil.copyfile(state, file)

    write_atomically(copy, link_or_copy, lambda: state.stat().st_size)


def load_state(path: Path) -> dict[str, Any]:
    """A state that `save_state` wrote. Raises ConfigError for anything else."""
    state = read_file(path).value
    if not _is_ours(state, path):
        raise ConfigError(f"{path}: not a training state")
    learner = state["learner"]
    renamed = {f"key_encoder.{k[5:]}" if k.startswith("twin.") else k: value for k, value in learner.items()}
    return {**state, "learner": renamed}  # twin: its name in states of earlier versions


def _is_ours(state: Any, path: Path) -> bool:
    """Whether this is a training state. Raises ConfigError for one of another version, which might be misread."""
    if not isinstance(state, dict) or not {"format", "learner"} <= state.keys():
        return False
    if state["format"] != FORMAT:
        raise ConfigError(
            f"{path}: a training state of another version (format {state['format']}, this version reads {FORMAT}); go "
            "on with the version that wrote it, or start from backbone.safetensors, which every version reads"
        )
    return True


def save_backbone(path: Path, backbone: nn.Module, section: dict[str, Any], clip: dict[str, Any] | None = None) -> None:
    """The backbone alone as safetensors, with the configuration section that builds it in the header.

    clip: format of the clips that it was trained on, see `clip_format`; stored, too.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    metadata = {"format": "pt", "backbone": json.dumps(section), "clip": json.dumps(clip or {})}
    size = sum(value.nbytes for value in tensors.values())
    write_atomically(path, lambda file: save_file(tensors, file, metadata), lambda: size)


@dataclass(frozen=True)
class Weights:
    """Weights found in a file, under the names of our modules."""

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]  # weight [classes, C] or [classes, C, k], bias [classes]; empty if the file has none
    section: dict[str, Any] | None  # the backbone's configuration, where the file says it
    layout: str  # what kind of file it is
    ignored: dict[str, str] = field(default_factory=dict)  # name that belongs to neither -> what it is
    unit: bool = False  # the classifier wants features of length 1
    classes: tuple[str, ...] = ()  # their names in the classifier's order; empty if the file does not say
    clip: dict[str, Any] = field(default_factory=dict)  # format of the clips it was trained on, as far as the file says


def clip_format(section: dict[str, Any]) -> dict[str, Any]:
    """The format of a task's clips, of its section of the configuration: their size, and how they are normalized."""
    color = (section.get("augmentation") or {}).get("color") or {}
    sizes = {name: section[name] for name in ("clip_frames", "frame_stride", "crop_size") if name in section}
    return sizes | {name: list(color[name]) for name in ("mean", "std") if name in color}


def find_checkpoint(given: str | os.PathLike) -> Path:
    """A file, or the last state of a run's folder. Raises ConfigError if there is none."""
    path = Path(os.path.expanduser(given))  # as it is where there is no such user
    if os.path.isdir(path) and not os.path.isfile(path / "last.pt"):
        there = sorted(file for kind in ("*.pt", "*.safetensors") for file in map(str, path.glob(kind)))
        have = f"; it has {', '.join(there[:4])}{' ...' if len(there) > 4 else ''}" if there else ""
        raise ConfigError(f"checkpoint={given}: no last.pt in this folder{have}; give a file or a run's folder")
    path = path / "last.pt" if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise ConfigError(f"checkpoint={given}: no such file; give a file, a run's folder, or none to start untrained")
    return path


def load_weights(given: str | os.PathLike) -> Weights:
    """The weights of our own states and safetensors files, and of released ones. What a file is, is read from what it
    holds, never from its name. Raises ConfigError for others."""
    path = find_checkpoint(given)
    state, header = read_file(path)
    section = _section_in(header or {})
    if section is not None:
        return Weights(state, {}, section, "vidssl backbone", clip=json.loads((header or {}).get("clip", "{}")))
    if header is None and _is_ours(state, path):
        return _of_state(state)
    released = read_official(state, path)
    return Weights(released.backbone, released.classifier, None, released.layout, released.ignored)


def _of_state(state: dict[str, Any]) -> Weights:
    learner, prefix = state["learner"], state["backbone_prefix"]
    backbone = {key.removeprefix(prefix): value for key, value in learner.items() if key.startswith(prefix)}
    head = {key.removeprefix("head."): value for key, value in learner.items() if key.startswith("head.")}
    others = {key: key.partition(".")[0] for key in learner if not key.startswith((prefix, "head."))}
    task, config = state["task"], state["config"]
    return Weights(
        backbone, head, config["backbone"], f"vidssl {task} state", others,
        unit=config[task].get("normalize") == "unit", classes=tuple(state.get("classes", ())),
        clip=clip_format(config[task]),
    )  # fmt: skip


def _section_in(header: dict[str, str]) -> dict[str, Any] | None:
    """The backbone's configuration, if `save_backbone` wrote this header."""
    try:
        section = json.loads(header.get("backbone", "null"))
    except json.JSONDecodeError:
        return None
    return section if isinstance(section, dict) and "name" in section else None


@dataclass(frozen=True)
class LoadReport:
    """What went where when weights were loaded."""

    layout: str
    matched: int
    missing: tuple[str, ...]  # in the network, not in the file
    unexpected: tuple[str, ...]  # in the file under a backbone name, not in the network
    misshapen: tuple[str, ...]
    ignored: dict[str, str]  # name -> what it is

    def lines(self) -> list[str]:
        parts = Counter(self.ignored.values()).items()
        aside = "; left aside: " + ", ".join(f"{count} {part}" for part, count in parts) if parts else ""
        lines = [f"{self.layout}: {self.matched} tensors matched{aside}"]
        for word, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("other shape", self.misshapen),
        ):
            if names:
                lines.append(f"{len(names)} {word}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
        return lines


def load_backbone(weights: Weights, backbone: nn.Module) -> LoadReport:
    """Copy weights into a backbone by name. Raises ConfigError unless every tensor of the backbone is found."""
    own = backbone.state_dict()
    misshapen = tuple(
        f"{name} {list(weights.backbone[name].shape)} for {list(value.shape)}"
        for name, value in own.items()
        if name in weights.backbone and weights.backbone[name].shape != value.shape
    )
    report = LoadReport(
        weights.layout,
        sum(name in weights.backbone for name in own) - len(misshapen),
        tuple(name for name in own if name not in weights.backbone),
        tuple(name for name in weights.backbone if name not in own),
        misshapen,
        weights.ignored,
    )
    if report.missing or report.unexpected or report.misshapen:
        raise ConfigError("does not fit the backbone: " + "; ".join(report.lines()))
    backbone.load_state_dict(weights.backbone)
    return report
