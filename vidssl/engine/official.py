"""Convert state dicts of the papers' released checkpoints to the names of this package.

Only key layouts are converted here; backbones use the releases' layer names where these name layers. The layout is
recognized by a file's keys, never by its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vidssl.registry import ConfigError

CONTAINERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "weights")  # keys of the state dict
WRAPPERS = ("module.", "base_model.")  # DistributedDataParallel and DataParallel; BE's fine-tuning
QUERY = "encoder_q."
INNER = "backbone."  # prefix in networks with other parts
CLASSIFIERS = ("fc", "linear", "cp", "conv3d_0c_1x1_custom.conv3d")
IGNORED = {  # pattern of the name -> why it is not used here
    r"encoder_k\.": "momentum encoder",
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
    """Weights of a released checkpoint under the names of this package."""

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]  # weight [classes, C] or, over time, [classes, C, k]; bias [classes]; empty if none
    layout: str
    ignored: dict[str, str]  # name -> why


def read_official(state: Any, path: Path) -> Released:
    """Weights in a released checkpoint, pretrained or fine-tuned, or in its bare state dict.

    MoCo, FAME, DCLR and FIMA keep {state_dict: encoder_q.*, encoder_k.*, queues, ...}, BE {model: layers and id_head};
    classifiers have the layers and a last one. Raises ConfigError for anything else.
    """
    entries = unwrapped(_tensors_in(state, path))
    inner = {key.removeprefix(INNER): value for key, value in entries.items() if key.startswith(INNER)}
    ignored = {key: "unknown part" for key in entries if inner and not key.startswith(INNER)}
    entries = inner or entries
    unused = {key: reason for key in entries if (reason := _why_ignored(key))}
    if any(key.startswith(QUERY) for key in entries):
        backbone = {
            key.removeprefix(QUERY): value
            for key, value in entries.items()
            if key.startswith(QUERY) and key not in unused
        }
        unused |= {key: "unknown part" for key in entries if not key.startswith(QUERY) and key not in unused}
        return Released(_renamed(backbone), {}, "released pretraining checkpoint", ignored | unused)
    pretrained = any(key.startswith("id_head.") for key in entries)
    classifier = {} if pretrained else _classifier(entries)
    last = () if pretrained else tuple(f"{name}.{kind}" for name in CLASSIFIERS for kind in ("weight", "bias"))
    backbone = {key: value for key, value in entries.items() if key not in unused and key not in last}
    unused = {key: reason for key, reason in unused.items() if not (classifier and key in last)}
    layout = "released pretraining checkpoint" if pretrained else "released classifier checkpoint"
    layout = layout if pretrained or classifier else "state dict"
    return Released(_renamed(backbone), classifier, layout, ignored | unused)


def _tensors_in(state: Any, path: Path) -> dict[str, Tensor]:
    """Named tensors in a loaded object; other values are left out. Raises ConfigError if there are none."""
    for key in CONTAINERS:
        inner = state.get(key) if isinstance(state, dict) else None
        state = inner if isinstance(inner, dict) else state
    entries = state.items() if isinstance(state, dict) else ()
    tensors = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ConfigError(
            f"checkpoint={path}: holds no state_dict of tensors; not a checkpoint of ours or of a release"
        )
    return tensors


def unwrapped(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of modules around the network from its names."""
    for wrapper in WRAPPERS:
        entries = {key.removeprefix(wrapper): value for key, value in entries.items()}
    while True:
        first = next(iter(entries)).partition(".")[0] + "."
        inner = {key.removeprefix(first): value for key, value in entries.items() if key.startswith(first)}
        if first == QUERY or len(inner) < len(entries) or not _is_network(inner):
            return entries
        entries = inner


def _is_network(names: Collection[str]) -> bool:
    """Whether these may be names of a whole network, not of one of its layers or of its numbered layers."""
    return any("." in name for name in names) and not any(name[:1].isdigit() for name in names)


def _why_ignored(key: str) -> str | None:
    return next((reason for pattern, reason in IGNORED.items() if re.match(pattern, key)), None)


def _classifier(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight and bias of the last layer; linear if it is applied to the mean of a feature map.

    BE's R3D has a 1 x 1 x 1 convolution; its I3D and S3D-G have one over time, on the means of neighboring frames.
    """
    name = next((name for name in CLASSIFIERS if f"{name}.weight" in entries), None)
    if name is None:
        return {}
    weight = entries[f"{name}.weight"].flatten(2) if entries[f"{name}.weight"].ndim == 5 else entries[f"{name}.weight"]
    if name == "cp":
        weight = weight.squeeze(2)
    bias = entries.get(f"{name}.bias")
    return {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}


def _renamed(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entries under this package's layer names."""
    rules = next((rules for key, rules in RENAMED.items() if key in entries), ())
    renamed = {}
    for key, value in entries.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed
