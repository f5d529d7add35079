"""What ours is measured against: the forms of the papers' releases, in our own words.

Each does the same arithmetic as the release it stands for, with the same detours: full-size temporaries, lists of
indices, copies of the queue, new tensors for each parameter of the slow twin. Tests hold their results against ours.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidssl.augment.blur import gaussian, kernel_size
from vidssl.augment.photometric import Draws, Photometric

EPS = 1e-8


# ---------------------------------------------------------------------------------------------------------------------
# Color


class ColorChain:
    """kornia's operations in the order and with the probabilities of one of our chains. clip [B, 3, T, S, S]."""

    def __init__(self, ours: Photometric, side: int, device: torch.device | str = "cpu"):
        import kornia.augmentation as kornia

        color = kornia.ColorJiggle if ours.flavor == "jiggle" else kornia.ColorJitter
        size = kernel_size(side)
        self.chain = kornia.VideoSequential(
            kornia.RandomGrayscale(p=ours.gray),
            color(*ours.ranges, p=ours.jitter),
            kornia.RandomGaussianBlur((size, size), ours.blur_sigma, p=ours.blur),
            kornia.Normalize(ours.mean.flatten(), ours.std.flatten()),
            data_format="BCTHW",
            same_on_frame=True,
        ).to(device)

    @torch.no_grad()
    def __call__(self, clip: Tensor, params: list | None = None) -> Tensor:
        """params: as drawn before; None: draws anew."""
        return self.chain(clip, params=params)

    def drawn(self, clip: Tensor) -> tuple[list, Draws]:
        """New draws for such clips, as kornia notes them and in our words."""
        self(clip)
        return self.chain._params, self._in_our_words(clip.shape[2])

    def _in_our_words(self, frames: int) -> Draws:
        """kornia has numbers for every frame, equal within a clip."""
        gray, color, blur, _ = (item.data for item in self.chain._params)
        names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
        of_clips = slice(None, None, frames)
        return Draws(
            gray=gray["batch_prob"][of_clips].cpu() > 0.5,
            jitter=color["batch_prob"][of_clips].cpu() > 0.5,
            factors=torch.stack([color[name][of_clips] for name in names]).float().cpu(),
            order=tuple(color["order"].tolist()),
            blur=blur["batch_prob"][of_clips].cpu() > 0.5,
            sigma=blur["sigma"][of_clips].float().cpu(),
        )


# ---------------------------------------------------------------------------------------------------------------------
# FAME


class ForegroundSwap:
    """FAME's mask and merge. clip [B, 3, T, S, S] in [0, 1], order int64 [B] -> merged clip, mask [B, S, S]."""

    def __init__(self, side: int, beta: float, device: torch.device | str = "cpu"):
        self.beta = beta
        self.size = kernel_size(side)
        self.taps = gaussian(self.size, self.size / 3).to(device)

    @torch.no_grad()
    def __call__(self, clip: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask(clip)
        share = mask[:, None, None]
        return clip * share + clip[order] * (1 - share), mask

    @torch.no_grad()
    def mask(self, clip: Tensor) -> Tensor:
        """float32 [B, H, W] of zeros and ones."""
        b, _, _, h, w = clip.shape
        change = (clip[:, :, 1:] - clip[:, :, :-1]).abs()
        seed = stretched(self.blurred(change.sum(dim=1).mean(dim=1)))
        bins = self.bins(clip.mean(dim=2)).flatten(1)
        most = seed.flatten(1).topk(int(0.5 * h * w), dim=1).indices
        least = seed.flatten(1).topk(int(0.1 * h * w), dim=1, largest=False).indices
        moving = self.histogram(bins.gather(1, most))
        still = self.histogram(bins.gather(1, least)) + 1
        moving = moving / (moving.sum(dim=1, keepdim=True) + EPS)
        still = still / (still.sum(dim=1, keepdim=True) + EPS)
        posterior = (moving / (still + moving)).gather(1, bins).view(b, h, w)
        chosen = stretched(self.blurred(posterior)).flatten(1).topk(int(self.beta * h * w), dim=1).indices
        places = [[video, place] for video, row in enumerate(chosen.tolist()) for place in row]
        rows, columns = torch.tensor(places, device=clip.device).T
        mask = torch.zeros(b, h * w, device=clip.device)
        mask[rows, columns] = 1
        return mask.view(b, h, w)

    def blurred(self, image: Tensor) -> Tensor:
        """[B, H, W], reflected at the border, as two convolutions."""
        reach = self.size // 2
        padded = F.pad(image[:, None], (reach,) * 4, mode="reflect")
        along = F.conv2d(padded, self.taps.view(1, 1, 1, -1))
        return F.conv2d(along, self.taps.view(1, 1, -1, 1))[:, 0]

    @staticmethod
    def bins(image: Tensor) -> Tensor:
        """Of kornia's HSV, whose hue is in radians and is multiplied by 2 pi once more. int64 [B, H, W], 1 .. 1000."""
        import kornia.color

        hue, saturation, value = kornia.color.rgb_to_hsv(image).unbind(dim=1)
        angle = 2 * torch.pi * hue
        axes = ((saturation * angle.cos() + 1) / 2, (saturation * angle.sin() + 1) / 2, value)
        a, e, v = (torch.round(9 * axis + 1).long() for axis in axes)
        return a + 10 * (e - 1) + 100 * (v - 1)

    @staticmethod
    def histogram(bins: Tensor) -> Tensor:
        """[B, N] -> counts float32 [B, 1000]."""
        ones = torch.ones(bins.shape, device=bins.device)
        return torch.zeros(len(bins), 1000, device=bins.device).scatter_add_(1, bins, ones)


def stretched(image: Tensor) -> Tensor:
    """Each of [B, H, W] to [0, 1]."""
    image = image - image.amin(dim=(1, 2), keepdim=True)
    return image / (image.amax(dim=(1, 2), keepdim=True) + EPS)


# ---------------------------------------------------------------------------------------------------------------------
# MoCo


class Contrast:
    """The queue with its logits and loss: a copy of the queue, a concatenation, a softmax. keys: unit, [K, D]."""

    def __init__(self, keys: Tensor, temperature: float):
        self.queue = keys.T.contiguous()  # [D, K]
        self.place, self.temperature = 0, temperature

    def loss(self, query: Tensor, key: Tensor) -> Tensor:
        """query, key: unit float32 [B, D] -> float32 []. The keys join the queue."""
        own = torch.einsum("nd,nd->n", query, key)[:, None]
        others = torch.einsum("nd,dk->nk", query, self.queue.clone().detach())
        logits = torch.cat([own, others], dim=1) / self.temperature
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        self.push(key)
        return F.cross_entropy(logits, target)

    @torch.no_grad()
    def push(self, key: Tensor) -> None:
        self.queue[:, self.place : self.place + len(key)] = key.T
        self.place = (self.place + len(key)) % self.queue.shape[1]


@torch.no_grad()
def follow(slow: nn.Module, network: nn.Module, momentum: float) -> None:
    """Parameter by parameter, in new tensors."""
    for own, given in zip(slow.parameters(), network.parameters(), strict=True):
        own.data = own.data * momentum + given.data * (1.0 - momentum)


class MoCoStep:
    """A training step on ready views: float32, contiguous, both directions, plain SGD.

    network: clip [B, 3, T, S, S] -> [B, D]; copied, so that it can train beside ours. keys: of the queue, [K, D].
    """

    def __init__(
        self, network: nn.Module, keys: Tensor, *, temperature: float, twin_momentum: float,
        lr: float, momentum: float, weight_decay: float,
    ):  # fmt: skip
        self.network = deepcopy(network).train()
        self.slow = deepcopy(network).train().requires_grad_(False)
        self.contrast, self.twin_momentum = Contrast(keys.clone(), temperature), twin_momentum
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=False
        )

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """The loss before the step."""
        losses = []
        for turn, (query, key) in enumerate(((left, right), (right, left))):
            q = F.normalize(self.network(query), dim=1)
            with torch.no_grad():
                if turn == 0:
                    follow(self.slow, self.network, self.twin_momentum)
                k = F.normalize(self.slow(key), dim=1)
            losses.append(self.contrast.loss(q, k))
        loss = sum(losses) / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
