"""The papers' released checkpoints -> our names.

Only the key layouts are known here; backbones carry the releases' layer names where these are layer names at all. What
a file is, is read from what it holds, never from its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vidssl.registry import ConfigError

CONTAINERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "weights")  # of the names and tensors
WRAPPERS = ("module.", "base_model.")  # DistributedDataParallel and DataParallel; BE's fine-tuning
QUERY = "encoder_q."
INNER = "backbone."  # of networks that have other parts beside it
CLASSIFIERS = ("fc", "linear", "cp", "conv3d_0c_1x1_custom.conv3d")
LEFT_ASIDE = {  # pattern of the name -> why it is of no use here
    r"encoder_k\.": "twin",
    r"(motion_)?queue(_\w+)?$": "queue",
    r"(encoder_q\.)?(fc|id_head|f[vsd][vsd])\.": "projection head",
    r"cls_token$|(projector_dense(_k)?|embedding[12]|transformer_decoder)\.": "FIMA's local branch",
    r"painting_(Gen|Dis)\.": "BE's unpublished inpainting",
    r"aug_gpu\.": "augmentation",
}
R3D = (  # BE's names -> torchvision's, one rule after the other
    (r"^conv1\.", r"stem.0."),
    (r"^bn1\.", r"stem.1."),
    (r"^(layer.+)\.conv(\d)\.", r"\1.conv\2.0."),
    (r"^(layer.+)\.bn(\d)\.", r"\1.conv\2.1."),
)
R2PLUS1D = (
    (r"\.spatial_conv\.", r".0."),
    (r"\.bn\.", r".1."),
    (r"\.temporal_conv\.", r".3."),
    (r"^conv1\.", r"stem."),
    (r"^bn1\.", r"stem.4."),
    *((rf"^conv{n + 1}\.block1\.", rf"layer{n}.0.") for n in (1, 2, 3, 4)),
    (r"\.conv(\d)\.", r".conv\1.0."),
    (r"\.bn(\d)\.", r".conv\1.1."),
    (r"\.downsampleconv\.", r".downsample.0."),
    (r"\.downsamplebn\.", r".downsample.1."),
)
S3D = ((r"^feature\.", r""),)
RENAMED = {
    "layer1.0.bn1.weight": R3D,
    "conv1.spatial_conv.weight": R2PLUS1D,
    "feature.sepConv1.sep_conv.0.bn.weight": S3D,
}


class Released(NamedTuple):
    """Weights under our names."""

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]  # weight [classes, C] or, over time, [classes, C, k]; bias; empty if there is none
    layout: str
    ignored: dict[str, str]  # name -> why


def read_official(state: Any, path: Path) -> Released:
    """The state of a released file, pretraining or fine-tuned, or a bare state dict of one.

    MoCo, FAME, DCLR and FIMA keep {state_dict: encoder_q.*, encoder_k.*, queues, ...}, BE {model: layers and id_head};
    classifiers have the layers and a last one. Raises ConfigError for anything else.
    """
    entries = unwrapped(_tensors_in(state, path))
    inner = {key.removeprefix(INNER): value for key, value in entries.items() if key.startswith(INNER)}
    ignored = {key: "unknown part" for key in entries if inner and not key.startswith(INNER)}
    entries = inner or entries
    aside = {key: why for key in entries if (why := _why_ignored(key))}
    if any(key.startswith(QUERY) for key in entries):
        own = {key.removeprefix(QUERY): v for key, v in entries.items() if key.startswith(QUERY) and key not in aside}
        aside |= {key: "unknown part" for key in entries if not key.startswith(QUERY) and key not in aside}
        return Released(_renamed(own), {}, "released pretraining checkpoint", ignored | aside)
    pretrained = any(key.startswith("id_head.") for key in entries)
    classifier = {} if pretrained else _classifier(entries)
    last = () if pretrained else tuple(f"{name}.{kind}" for name in CLASSIFIERS for kind in ("weight", "bias"))
    own = {key: value for key, value in entries.items() if key not in aside and key not in last}
    aside = {key: why for key, why in aside.items() if not (classifier and key in last)}
    kind = "released pretraining checkpoint" if pretrained else "released classifier checkpoint"
    return Released(_renamed(own), classifier, kind if pretrained or classifier else "state dict", ignored | aside)


def _tensors_in(state: Any, path: Path) -> dict[str, Tensor]:
    """The names and tensors in what somebody saved; numbers and texts among them are left out."""
    for key in CONTAINERS:
        inner = state.get(key) if isinstance(state, dict) else None
        state = inner if isinstance(inner, dict) else state
    entries = state.items() if isinstance(state, dict) else ()
    found = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    if not found:
        raise ConfigError(
            f"checkpoint={path}: holds no state_dict of tensors; not a checkpoint of ours or of a release"
        )
    return found


def unwrapped(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that they have in the network, without those of the modules around it."""
    for wrapper in WRAPPERS:
        entries = {key.removeprefix(wrapper): value for key, value in entries.items()}
    while True:
        first = next(iter(entries)).partition(".")[0] + "."
        inner = {key.removeprefix(first): value for key, value in entries.items() if key.startswith(first)}
        if first == QUERY or len(inner) < len(entries) or not _is_network(inner):
            return entries
        entries = inner


def _is_network(names: Collection[str]) -> bool:
    """Whether these may be a network's, not those of a layer of it, which are one word, or of its numbered layers."""
    return any("." in name for name in names) and not any(name[:1].isdigit() for name in names)


def _why_ignored(key: str) -> str | None:
    return next((why for pattern, why in LEFT_ASIDE.items() if re.match(pattern, key)), None)


def _classifier(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last layer, as a linear one where it is one on a map's mean.

    BE's R3D has a 1 x 1 x 1 convolution on it; its I3D and S3D-G one over time, on the means of neighboring frames.
    """
    name = next((name for name in CLASSIFIERS if f"{name}.weight" in entries), None)
    if name is None:
        return {}
    weight = entries[f"{name}.weight"].flatten(2) if entries[f"{name}.weight"].ndim == 5 else entries[f"{name}.weight"]
    if name == "cp":
        weight = weight.squeeze(2)
    bias = entries.get(f"{name}.bias")
    return {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}


def _renamed(own: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = next((rules for key, rules in RENAMED.items() if key in own), ())
    renamed = {}
    for key, value in own.items():
        for pattern, ours in rules:
            key = re.sub(pattern, ours, key)
        renamed[key] = value
    return renamed
