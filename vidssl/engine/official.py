"""The papers' released checkpoints -> our names.

Only the key layouts are known here; backbones carry the releases' layer names where these are layer names at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vidssl.registry import ConfigError

HEADS = ("fc.", "id_head.")  # projection heads of R(2+1)D and I3D in the FAME release
QUERY, KEY = "encoder_q.", "encoder_k."


class Released(NamedTuple):
    """Weights under our names."""

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]  # weight and bias, if the file has them
    layout: str
    ignored: tuple[str, ...]  # heads, twin, queue


def read_official(state: Any, path: Path) -> Released:
    """The state of a released MoCo or FAME file: pretraining (encoder_q, encoder_k, queue) or fine-tuned classifier.

    Accepts names with and without "module." in front and a bare state dict. Raises ConfigError for anything else.
    """
    entries = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(entries, dict) or not entries or not all(isinstance(v, Tensor) for v in entries.values()):
        raise ConfigError(
            f"checkpoint={path}: holds no state_dict of tensors; not a checkpoint of ours or of a release"
        )
    entries = {key.removeprefix("module."): value for key, value in entries.items()}
    if any(key.startswith(QUERY) for key in entries):
        own = {key.removeprefix(QUERY): value for key, value in entries.items() if key.startswith(QUERY)}
        backbone = {key: value for key, value in own.items() if not key.startswith(HEADS)}
        ignored = [QUERY + key for key in own if key.startswith(HEADS)]
        ignored += [key for key in entries if not key.startswith(QUERY)]
        return Released(backbone, {}, "released MoCo/FAME pretraining checkpoint", tuple(ignored))
    backbone = {key: value for key, value in entries.items() if not key.startswith(HEADS)}
    classifier = {name: entries[f"fc.{name}"] for name in ("weight", "bias") if f"fc.{name}" in entries}
    ignored = [key for key in entries if key.startswith(HEADS) and key not in ("fc.weight", "fc.bias")]
    return Released(backbone, classifier, "released classifier checkpoint", tuple(ignored))
