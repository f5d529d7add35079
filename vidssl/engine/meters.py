"""Scalars and speed of a training; scalars stay on their device until the log needs them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vidssl.engine import distributed
from vidssl.learner import StepOutput
from vidssl.registry import ConfigError

Rows = list[dict[str, float]]


class NotFinite(RuntimeError):
    """A scalar of the training is nan or infinite; nothing was saved since the last state."""


class Meters:
    """Scalars of the steps that were not read back yet, and the speed since the start of this process."""

    def __init__(self, task: str):
        self.task = task
        self.pending: list[tuple[dict[str, float], list[str], Tensor]] = []  # per step: learning rates, names, values
        self.names: list[str] | None = None  # of a step's scalars
        self.last_loss: float | None = None  # not read back yet
        self.started, self.steps, self.clips, self.waited = time.monotonic(), 0, 0, 0.0

    def start(self) -> None:
        self.started = time.monotonic()

    def add(self, rates: dict[str, float], outputs: Sequence[StepOutput]) -> None:
        """Add a step, as the means over its accumulated batches, without waiting for the device."""
        scalars = {"loss": torch.stack([output.loss.detach() for output in outputs]).mean()}
        self._check_names(outputs)
        for name in outputs[0].scalars:
            scalars[name] = torch.stack([output.scalars[name].detach().float() for output in outputs]).mean()
        self.pending.append((rates, list(scalars), torch.stack(list(scalars.values()))))
        self.steps += 1

    def _check_names(self, outputs: Sequence[StepOutput]) -> None:
        """Raise ConfigError if a step's scalars have other names than those of earlier steps."""
        names = [sorted(output.scalars) for output in outputs]
        if self.names is None:
            self.names = names[0]
        for other in names:
            if other != self.names:
                raise ConfigError(
                    f"{self.task}: a step's scalars are called {', '.join(other) or 'nothing'}, "
                    f"those before {', '.join(self.names) or 'nothing'}; every step must give the same names"
                )

    def read_back(self, step: int) -> Rows:
        """Scalars of the steps up to `step`, fetched from the device at once. Raises NotFinite if one is not finite."""
        if not self.pending:
            return []
        values = distributed.mean(torch.stack([row for _, _, row in self.pending])).tolist()
        rows, first = [], step - len(values) + 1
        for index, (rates, names, _), row in zip(range(first, step + 1), self.pending, values, strict=True):
            scalars = dict(zip(names, row, strict=True))
            if not all(map(math.isfinite, row)):
                listed = ", ".join(f"{name}={value:g}" for name, value in scalars.items())
                raise NotFinite(
                    f"{self.task}: not finite at step {index}: {listed}, lr={rates['lr']:g}. Nothing was saved since; "
                    f"a lower {self.task}.optimizer.lr, a warm-up or trainer.clip_grad may help."
                )
            rows.append(scalars | rates)
        self.last_loss = rows[-1]["loss"]
        self.pending = []
        return rows

    def speed(self) -> dict[str, float]:
        """Clips per second, fraction of time spent waiting for data, and seconds per step without that time."""
        seconds = max(1e-9, time.monotonic() - self.started)
        speed = {"clips_per_second": self.clips / seconds, "waiting_for_data": self.waited / seconds}
        return speed | ({"seconds_per_step": (seconds - self.waited) / self.steps} if self.steps else {})

    def note(self) -> str:
        """Text for the progress bar."""
        speed, loss = self.speed(), "-" if self.last_loss is None else f"{self.last_loss:.3f}"
        return f"loss {loss} {speed['clips_per_second']:.0f} clips/s waiting {speed['waiting_for_data']:.0%}"


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of scalars over steps; of learning rates the last."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return means | {name: value for name, value in rows[-1].items() if name.startswith("lr")}
