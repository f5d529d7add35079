"""What a network says about each video of a loader, in the order of the manifest, once each, on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vidssl.clips import Batch
from vidssl.engine import distributed
from vidssl.registry import ConfigError


@torch.no_grad()
def per_video(
    answer: Callable[[Tensor], Tensor], batches: Iterable[Batch], device: torch.device, *, average: bool = True
) -> dict[str, Tensor]:
    """Answers averaged over a video's clips, or each clip's own.

    answer: clips uint8 [N, 3, T, S, S] -> float32 [N, D]. Returns value [M, D], or [M, V, D] if not averaged, label and
    index int64 [M], on the CPU.
    """
    values, labels, indices = [], [], []
    for batch in batches:
        clips = batch.to(device, non_blocking=True).clips
        each = answer(clips.flatten(0, 1)).float()
        each = each.view(*clips.shape[:2], -1)  # [B, V, D]
        values.append((each.mean(dim=1) if average else each).cpu())
        labels.append(batch.label)
        indices.append(batch.index)
        if distributed.asked_here():
            break  # ranks have different numbers of batches: they agree behind the last
    return of_all_ranks({"value": values, "label": labels, "index": indices})


def of_all_ranks(own: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """What every rank found, a row a video, in the order of `index`. Raises Stopped if a signal came meanwhile."""
    distributed.stop_if_asked()
    gathered = {name: distributed.gather_lists(parts) for name, parts in own.items()}
    if not gathered["index"]:
        raise ConfigError("data: none of the videos could be decoded; task=prepare names what is wrong with each")
    found = {name: torch.cat(parts) for name, parts in gathered.items()}
    order = found["index"].argsort()
    return {name: part[order] for name, part in found.items()}
