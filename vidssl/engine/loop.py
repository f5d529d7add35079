"""The one training loop.

Order of data, crops and all draws are functions of (seed, epoch, index) and (seed, step, rank); so any saved step is a
place to start again, and what comes out does not depend on how often that happened.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidssl.clips import Batch
from vidssl.engine import disk, distributed
from vidssl.engine.checkpoint import keep_copy, load_state, save_state
from vidssl.engine.device import HALF, Precision, ToDevice, pad_short_clips, wants_channels_last
from vidssl.engine.log import Bar, Log
from vidssl.engine.optim import Schedule
from vidssl.learner import Learner, StepOutput
from vidssl.registry import ConfigError, NonNegativeFloat, NonNegativeInt, PositiveInt

RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
BROADCAST = "forward_sync_buffers" if RENAMED else "broadcast_buffers"  # newer torch renames it


@dataclass(frozen=True)
class TrainerOptions:
    accumulate: PositiveInt  # batches of the loader to one step of the optimizer
    clip_grad: NonNegativeFloat  # largest norm of the gradient; 0: no limit
    channels_last: Literal["auto"] | bool  # memory format of convolutions
    log_every: PositiveInt  # steps
    save_every: PositiveInt  # steps; the end of an epoch is saved too
    keep_every: NonNegativeInt  # epochs whose states stay, as epoch-N.pt; 0: last and best alone
    pictures_every: NonNegativeInt  # epochs; 0: no pictures
    batch_norm: Literal["local", "sync", "frozen"]  # statistics of a rank's batch, of all ranks', or as they are
    broadcast_buffers: bool  # rank 0's batch norm statistics and queues for all ranks, at each step


class Loader(Protocol):
    def __len__(self) -> int: ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]: ...


@dataclass
class Progress:
    """Where a training stands; everything that a restart needs besides weights."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches of the current epoch taken
    step: int = 0  # steps of the optimizer
    metrics: int = 0  # bytes of metrics.jsonl
    recent: list[dict[str, float]] = field(default_factory=list)  # scalars of the steps since the last line
    last: dict[str, float] = field(default_factory=dict)  # scalars of the last line
    epoch_loss: float = 0.0  # sum over the steps of the current epoch
    best: dict[str, float] = field(default_factory=dict)  # scalars of the epoch whose state is best.pt


class NotFinite(RuntimeError):
    """The loss is not a number any more; nothing after the last saved state was kept."""


class Trainer:
    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        log: Log,
        *,
        task: str,
        file: Path | None,
        config: dict[str, Any],
        options: TrainerOptions,
        epochs: int,
        max_steps: int | None,
        seed: int,
        device: torch.device,
        precision: Precision,
        classes: Sequence[str] = (),  # names of what the learner tells apart, by label
    ):
        self.learner, self.optimizer, self.schedule, self.log = learner, optimizer, schedule, log
        self.task, self.file, self.config, self.options = task, file, config, options
        self.epochs, self.max_steps, self.seed, self.device, self.precision = epochs, max_steps, seed, device, precision
        self.classes = list(classes)
        self.channels_last = wants_channels_last(options.channels_last, precision, device)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.progress = Progress(metrics=log.position())
        self.on_device: list[tuple[float, list[str], Tensor]] = []  # rate, names, values of steps not read back yet
        self.last_loss = float("nan")
        self.begun_at, self.steps, self.clips, self.waited = time.monotonic(), 0, 0, 0.0  # of this start

    def fit(self, loader: Loader, after_epoch: Callable[[int, int], dict[str, float] | None] | None = None) -> Progress:
        """Train to the end, from the saved state if there is one.

        after_epoch(epoch, step): the task's validation, the most telling figure first; {} where an epoch has none. The
        best state is the one with the highest such figure, or, for tasks without validation (None), the one after the
        epoch with the lowest mean loss.
        """
        with distributed.noting_signals():
            return self._fit(loader, after_epoch)

    def _fit(self, loader: Loader, after_epoch: Callable[[int, int], dict[str, float] | None] | None) -> Progress:
        model = self.prepare()
        steps_per_epoch = len(loader) // self.options.accumulate
        batches, total = steps_per_epoch * self.options.accumulate, steps_per_epoch * self.epochs
        self.begun_at = time.monotonic()
        if self.max_steps is not None:
            total = min(total, self.max_steps)
        bar = self.log.bar(self.task, total, self.progress.step)
        with bar:
            while self.progress.step < total or 0 < self.progress.batch == batches:  # stopped at an epoch's very end
                self._epoch(model, loader, steps_per_epoch, total, bar)
                if self.progress.batch < batches:
                    break  # max_steps
                self._read_back()
                mean_loss = self.progress.epoch_loss / steps_per_epoch
                self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
                self.progress.epoch_loss = 0.0
                found = after_epoch(self.progress.epoch, self.progress.step) if after_epoch else None
                if found:
                    self.log.scalars(self.task, self.progress.step, float(self.progress.epoch), found)
                self._keep_best({"loss": mean_loss} if found is None else found)
                self.save()
                self._keep_epoch()
        self._flush(steps_per_epoch)
        self.save()
        return self.progress

    def prepare(self) -> nn.Module:
        """The learner on its device with the saved state, if there is one, and among the other ranks' learners."""
        self.learner.to(self.device)
        for parameter in self.learner.parameters():
            parameter.data = self._laid_out(parameter.data)
        if self.device.type == "cpu" and self.precision in HALF:
            pad_short_clips(self.learner)
        if self.options.batch_norm == "sync" and distributed.world() > 1:
            self.learner = nn.SyncBatchNorm.convert_sync_batchnorm(self.learner)
        self._restore()
        self._train_mode()
        return self._distributed()

    def _train_mode(self) -> None:
        self.learner.train()
        if self.options.batch_norm == "frozen":
            for module in self.learner.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _epoch(self, model: nn.Module, loader: Loader, steps_per_epoch: int, total: int, bar: Bar) -> None:
        """Train until the epoch ends or the last step is done."""
        progress = self.progress
        batches = ToDevice(loader.epoch(progress.epoch, progress.batch), self.device)
        self._train_mode()
        while progress.batch < steps_per_epoch * self.options.accumulate and progress.step < total:
            taken = progress.batch
            try:
                self.step(model, batches, steps_per_epoch)
            except distributed.Stopped as stopped:  # it waited for a batch that does not come, and for this rank alone
                if distributed.world() == 1 and progress.batch == taken:
                    self._stop(stopped.reason)
                raise
            if self.steps == 1:
                self._warn_of_little_room()
            if progress.step % self.options.log_every == 0:
                self._flush(steps_per_epoch)
            bar.advance(1, self._note())
            if progress.step % self.options.save_every == 0 and progress.step < total:
                self.save()
            reason = distributed.stop_asked()
            if reason:
                self._stop(reason)

    def _warn_of_little_room(self) -> None:
        """Once the optimizer has what it keeps, the size of a state is known; one is written before it replaces one."""
        if self.file is None or not self.log.is_main:
            return
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.learner.state_dict().values(), *(value for value in kept if isinstance(value, Tensor))]
        size = sum(tensor.nbytes for tensor in tensors)
        names = (self.file.name, self.file.name.replace("last", "best"))
        wanted = size * (1 + sum(not self.file.with_name(name).exists() for name in names))
        if self.options.keep_every:
            wanted += size * ((self.epochs - self.progress.epoch) // self.options.keep_every)
        free = disk.free(self.file.parent)
        if free < wanted:
            self.log.say(
                f"warning: {disk.shown(self.file.parent)}: {disk.human(free)} free, but {disk.human(wanted)} wanted "
                f"for states of {disk.human(size)} each, of which one is written beside the old one"
            )

    def _stop(self, reason: int) -> NoReturn:
        self.save()
        told = f"{self.task} stopped at step {self.progress.step}, saved in {self.file}"
        raise distributed.Stopped(told, reason) from None

    def step(self, model: nn.Module, batches: Iterator[Batch], steps_per_epoch: int) -> bool:
        """Batches on the device in, new weights out. Whether the weights are new: not while a method's queues fill."""
        progress = self.progress
        rate = self.schedule.factor(progress.step / steps_per_epoch, self.epochs)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * rate
        distributed.seed_step(self.seed, progress.step)
        if self.config.get("compile") == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave may be overwritten
        outputs = []
        for part in range(self.options.accumulate):
            batch = self._take(batches)
            is_last = part == self.options.accumulate - 1
            with _no_sync(model, not is_last):
                outputs.append(self._forward_backward(model, batch))
            progress.batch += 1
        updated = all(output.update for output in outputs)
        if updated:
            if self.options.clip_grad > 0:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.learner.parameters(), self.options.clip_grad)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        scalars = {"loss": torch.stack([output.loss.detach() for output in outputs]).mean()}
        for name in outputs[0].scalars:
            scalars[name] = torch.stack([output.scalars[name].detach().float() for output in outputs]).mean()
        self.on_device.append((base * rate, list(scalars), torch.stack(list(scalars.values()))))
        self.steps += 1
        return updated

    def _take(self, batches: Iterator[Batch]) -> Batch:
        begun = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - begun
        self.clips += batch.count * distributed.world()
        return batch

    def _forward_backward(self, model: nn.Module, batch: Batch) -> StepOutput:
        with torch.no_grad():
            views = self._formatted(self.learner.views(batch))
        with torch.autocast(self.device.type, HALF.get(self.precision), enabled=self.precision in HALF):
            output = model(views)
        if output.update:
            self.scaler.scale(output.loss / self.options.accumulate).backward()
        return output

    def _formatted(self, views: Any) -> Any:
        return type(views)(*map(self._laid_out, views)) if self.channels_last else views

    def _laid_out(self, value: Any) -> Any:
        """Clips and the weights of their convolutions in the memory format that was chosen."""
        if self.channels_last and isinstance(value, Tensor) and value.ndim == 5:
            return value.contiguous(memory_format=torch.channels_last_3d)
        return value

    def _distributed(self) -> nn.Module:
        if distributed.world() == 1:
            return self.learner
        plain = self.options.accumulate == 1 and not self.config.get("compile")  # neither takes a static graph
        model = DistributedDataParallel(
            self.learner,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=self.learner.static_graph and plain,
            **{BROADCAST: self.options.broadcast_buffers},
        )
        if self.device.type == "cpu" and distributed.world() > 2:
            model.register_comm_hook(None, distributed.ordered_sum)
        return model

    # -- numbers

    def _read_back(self) -> None:
        """Fetch the scalars of the last steps from the device, all at once, and look for a loss that is lost."""
        if not self.on_device:
            return
        values = distributed.mean(torch.stack([row for _, _, row in self.on_device])).tolist()
        first = self.progress.step - len(values) + 1
        for step, (lr, names, _), row in zip(range(first, first + len(values)), self.on_device, values, strict=True):
            scalars = dict(zip(names, row, strict=True))
            if not all(map(math.isfinite, row)):
                told = ", ".join(f"{name}={value:g}" for name, value in scalars.items())
                raise NotFinite(
                    f"{self.task}: not finite at step {step}: {told}, lr={lr:g}. Nothing was saved since; a lower "
                    f"{self.task}.optimizer.lr, a warm-up or trainer.clip_grad may help."
                )
            self.progress.recent.append({**scalars, "lr": lr})
            self.progress.epoch_loss += scalars["loss"]
        self.last_loss = scalars["loss"]
        self.on_device = []

    def _flush(self, steps_per_epoch: int) -> None:
        """Write the means since the last line."""
        self._read_back()
        recent = self.progress.recent
        if recent:
            means = {name: sum(row[name] for row in recent) / len(recent) for name in recent[0]}
            means["lr"] = recent[-1]["lr"]
            self.log.scalars(self.task, self.progress.step, self.progress.step / steps_per_epoch, means)
            self.progress.last = means
        self.progress.recent = []

    def last_scalars(self) -> dict[str, float]:
        """Of the newest line; empty if nothing was trained."""
        return dict(self.progress.last)

    def speed(self) -> dict[str, float]:
        """Of this start: clips/s, share of time spent waiting for data, seconds of a step without that."""
        seconds = max(1e-9, time.monotonic() - self.begun_at)
        speed = {"clips_per_second": self.clips / seconds, "waiting_for_data": self.waited / seconds}
        return speed | ({"seconds_per_step": (seconds - self.waited) / self.steps} if self.steps else {})

    def _note(self) -> str:
        speed = self.speed()
        return (
            f"epoch {self.progress.epoch + 1}/{self.epochs} loss {self.last_loss:.3f} "
            f"{speed['clips_per_second']:.0f} clips/s waiting {speed['waiting_for_data']:.0%}"
        )

    def _keep_best(self, found: dict[str, float]) -> None:
        """Save the state once more if its epoch is the best so far."""
        if not found or self.file is None:
            return
        name, value = next(iter(found.items()))
        before = self.progress.best.get(name)
        if before is None or (value < before if name == "loss" else value > before):
            self.progress.best = dict(found)
            self.save(self.file.with_name(self.file.name.replace("last", "best")))

    def _keep_epoch(self) -> None:
        every, epoch = self.options.keep_every, self.progress.epoch
        if every and epoch % every == 0 and self.file is not None and self.log.is_main:
            keep_copy(self.file, self.file.with_name(self.file.name.replace("last", f"epoch-{epoch}")))

    # -- state

    def save(self, file: Path | None = None) -> None:
        self._read_back()
        file = file or self.file
        if file is None:
            return  # so short a training that it starts anew
        distributed.barrier()
        self.progress.metrics = self.log.position()
        if self.log.is_main:
            save_state(file, self.state())

    def state(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "config": self.config,
            "learner": {name: value.detach().cpu() for name, value in self.learner.state_dict().items()},
            "backbone_prefix": _prefix(self.learner),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "progress": vars(self.progress).copy(),
            **({"classes": self.classes} if self.classes else {}),
        }

    def _restore(self) -> None:
        if self.file is None or not self.file.exists():
            return
        state = load_state(self.file)
        if state.get("classes", self.classes) != self.classes:
            then, now = (f"{len(names)} ({', '.join(names[:3])}, ...)" for names in (state["classes"], self.classes))
            raise ConfigError(
                f"{self.file}: was trained on other classes, {then}; the data set has {now}; output=OTHER starts anew"
            )
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        for kept in self.optimizer.state.values():
            kept.update({name: self._laid_out(value) for name, value in kept.items()})
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.log.rewind(self.progress.metrics)
        self.log.say(f"{self.task}: continues at step {self.progress.step}, from {self.file}")
        if state.get("precision", self.precision) != self.precision:
            self.log.say(f"{self.task}: began in {state['precision']} on another device, goes on in {self.precision}")


def _prefix(learner: Learner) -> str:
    """Where the backbone stands among the learner's names."""
    return next(name + "." for name, module in learner.named_modules() if module is learner.backbone)


def _no_sync(model: nn.Module, wanted: bool) -> AbstractContextManager:
    return model.no_sync() if wanted and isinstance(model, DistributedDataParallel) else nullcontext()
