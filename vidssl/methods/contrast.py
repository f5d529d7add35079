"""What contrastive methods share: embeddings, the slow twin, the queue of keys, and the loss.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (arXiv:1911.05722).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.engine import distributed
from vidssl.registry import NonNegativeInt, PositiveFloat, PositiveInt, Registry, Within

METHODS = Registry("method", "vidssl.methods")


@dataclass(frozen=True)
class KeyOptions:
    """Of methods whose keys come from a slow twin and wait in a queue."""

    dim: PositiveInt  # of an embedding
    head: Literal["linear", "mlp", "mlp_bn"]  # mlp_bn: batch norm behind both layers, the last without scale
    hidden: PositiveInt | None  # width of the head's inner layer; null: the backbone's
    head_std: PositiveFloat | None  # initial spread of the head's last layer, its bias 0; null: PyTorch's own
    queue: NonNegativeInt  # number of keys of past batches that serve as negatives; 0: the batch's other keys
    momentum: Annotated[float, Within("[0, 1]")]  # of the twin; 0: keys are the network's own, without gradient
    temperature: PositiveFloat
    shuffle_bn: bool  # keys are computed on a batch shuffled over the ranks


@dataclass(frozen=True)
class ContrastOptions(KeyOptions):
    symmetric: bool  # both clips of a pair are query once
    enqueue: Literal["after_both", "after_each_pass"]  # the second: a clip's own key is among its negatives


def projector(width: int, options: KeyOptions) -> nn.Sequential:
    """Map [B, width, t, h, w] -> [B, dim], to put behind a backbone."""
    layers = head_layers(options.head, width, options.hidden or width, options.dim)
    if options.head_std is not None:
        spread([layer for layer in layers if isinstance(layer, nn.Linear)][-1], options.head_std)
    return nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), *layers)


def head_layers(kind: Literal["linear", "mlp", "mlp_bn"], width: int, hidden: int, dim: int) -> list[nn.Module]:
    """[B, width] -> [B, dim]"""
    if kind == "linear":
        return [nn.Linear(width, dim)]
    first, last = nn.Linear(width, hidden), nn.Linear(hidden, dim)
    if kind == "mlp":
        return [first, nn.ReLU(inplace=True), last]
    return [first, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), last, nn.BatchNorm1d(dim, affine=False)]


def spread(layer: nn.Linear, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)


class Embedder(nn.Module):
    """Backbone and head: clip [B, 3, T, H, W] -> [B, dim]."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.backbone(clip))


def embed(network: nn.Module, clip: Tensor) -> Tensor:
    """Unit float32 [B, D]."""
    return unit(network(clip))


def unit(embedding: Tensor) -> Tensor:
    """float32 of length 1 along the last dimension, also where the network answers in half precision."""
    return F.normalize(embedding.float(), dim=-1)


class MomentumEncoder(nn.Module):
    """A copy of a network that follows it slowly and makes the keys."""

    def __init__(self, network: nn.Module, momentum: float):
        super().__init__()
        self.network = deepcopy(network).requires_grad_(False)
        self.momentum = momentum
        self.pair: tuple[nn.Module, list[Tensor], list[Tensor]] | None = None  # whom it follows; parameters of both

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """twin <- momentum * twin + (1 - momentum) * network, parameters only; its batch norm counts on its own."""
        if self.pair is None or self.pair[0] is not network:  # finding them takes a tenth of what follows
            self.pair = network, list(self.network.parameters()), list(network.parameters())
        torch._foreach_lerp_(*self.pair[1:], 1 - self.momentum)

    @torch.no_grad()
    def forward(self, clip: Tensor, *, shuffle: bool) -> Tensor:
        """Keys of all ranks, unit float32 [B * ranks, D].

        shuffle: batch norm sees a random mix of the ranks' clips, so that no statistics tell a pair's two ends.
        """
        return across_ranks(
            lambda part: (embed(self.network, part),), distributed.to_autocast_dtype(clip), shuffle=shuffle
        )[0]


@torch.no_grad()
def across_ranks(
    compute: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, shuffle: bool, alone: bool = False
) -> tuple[Tensor, ...]:
    """What `compute` makes of the inputs [B, ...]: its outputs [B, ...] on all ranks, [B * ranks, ...] in rank order.

    shuffle: each rank computes a random mix of all ranks' rows, brought back into order afterwards. One process skips
    this unless `alone`, since the order of a batch does not change its statistics.
    """
    if not shuffle or (distributed.world() == 1 and not alone):
        return tuple(distributed.gather(output) for output in compute(*inputs))
    order = distributed.shared_permutation(len(inputs[0]) * distributed.world())
    outputs = compute(*(distributed.exchange(part, order) for part in inputs))
    back = order.argsort().to(inputs[0].device)
    return tuple(distributed.gather(output)[back] for output in outputs)


class Queue(nn.Module):
    """The newest keys of past batches, equal on all ranks; the oldest are overwritten.

    kinds: so many keys of each sample move together.
    """

    def __init__(self, dim: int, length: int, kinds: int | None = None):
        super().__init__()
        shape = (length, dim) if kinds is None else (length, kinds, dim)
        self.register_buffer("keys", F.normalize(torch.randn(shape), dim=-1))  # unit float32 [K, D] or [K, kinds, D]
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """keys [N, D] or [N, kinds, D] of all ranks. Wraps around: the length need not be a multiple of N."""
        length = len(self.keys)
        keys = keys[-length:]
        rows = (self.place + torch.arange(len(keys), device=keys.device)) % length
        self.keys[rows] = keys
        self.place.copy_((self.place + len(keys)) % length)


def contrast_logits(query: Tensor, keys: Tensor, queue: Queue | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Logits of this rank's queries [B, D] and the column of each one's own key, int64 [B]. keys [B * ranks, D].

    [B, 1 + K] against the queue, or [B, B * ranks] against the batch where there is none.
    """
    if queue is None:
        return batch_logits(query, keys, temperature)
    logits = queue_logits(query, distributed.local_rows(keys), queue, temperature)
    return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)


def contrast_loss(
    query: Tensor, keys: Tensor, queue: Queue | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross entropy of contrast_logits, float32 []; the logits, without gradient; the columns of the own keys.

    Against a queue without a copy of it: its keys may be overwritten before the loss is differentiated.
    """
    if queue is None:
        logits, own = batch_logits(query, keys, temperature)
        return F.cross_entropy(logits, own), logits.detach(), own
    loss, logits = QueueLoss.apply(query, distributed.local_rows(keys), queue.keys, temperature)
    return loss, logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)


KEYS_AT_ONCE = 4096  # on CPUs: so many stay in the cache between the two products that they take part in


class QueueLoss(torch.autograd.Function):
    """query, key: unit float32 [B, D], keys [K, D] -> mean cross entropy [] and logits [B, 1 + K], own key first.

    The queue is read once: with each of its parts, the sum of the softmax and the sum of keys that the gradient of the
    query needs grow together, both relative to the largest logit so far. Products are written into tensors that are
    there, which also keeps them in float32 where networks work in half precision.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logits = query.new_empty(len(query), 1 + len(keys))
        scaled = query / temperature
        own = logits[:, :1] = (scaled * key).sum(dim=1, keepdim=True)
        largest, total, weighted = own, torch.ones_like(own), key.clone()
        size = KEYS_AT_ONCE if query.device.type == "cpu" else len(keys)
        for part, place in zip(keys.split(size), logits[:, 1:].split(size, dim=1), strict=True):
            torch.mm(scaled, part.T, out=place)
            before, largest = largest, torch.maximum(largest, place.amax(dim=1, keepdim=True))
            shrunk, weights = (before - largest).exp_(), (place - largest).exp_()
            total = total * shrunk + weights.sum(dim=1, keepdim=True)
            torch.addmm(weighted.mul_(shrunk), weights, part, out=weighted)
        ctx.save_for_backward((weighted / total - key) / (temperature * len(query)))
        ctx.mark_non_differentiable(logits)
        return (largest + total.log() - own).mean(), logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return of_loss * gradient, None, None, None


def queue_logits(query: Tensor, key: Tensor, queue: Queue, temperature: float) -> Tensor:
    """[B, 1 + K]: the positive in column 0, then the queue as it is now."""
    positive = (query * key).sum(dim=1, keepdim=True)
    negative = query @ queue.keys.clone().T  # a copy: pushing must not change what backward needs
    return torch.cat([positive, negative], dim=1) / temperature


def batch_logits(query: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """[B, N] against the keys of all ranks, and the column of each query's own key, int64 [B]."""
    own = torch.arange(len(query), device=query.device) + distributed.rank() * len(query)
    return query @ keys.T / temperature, own


def multi_positive_nce(logits: Tensor, positive: Tensor) -> Tensor:
    """-log of the probability that falls on all positives together, mean over the batch.

    logits [B, ..., N], positive bool of the same shape with one or more in each row -> float32 [...], >= 0.
    """
    logits = logits.float()
    on_positives = logits.masked_fill(~positive, -torch.inf).logsumexp(dim=-1)
    return (logits.logsumexp(dim=-1) - on_positives).mean(dim=0)
