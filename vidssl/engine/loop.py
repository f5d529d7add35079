"""The training loop of all tasks: fit -> epoch -> step -> forward and backward.

The order of data, crops and all random draws are functions of (seed, epoch, index) and (seed, step, rank). So training
can resume from any saved step, and its result does not depend on how often it did.
"""

from __future__ import annotations

import inspect
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
from vidssl.engine.device import HALF, Precision, ToDevice, pad_short_clips, use_channels_last
from vidssl.engine.log import Bar, Log
from vidssl.engine.meters import Meters, mean_of
from vidssl.engine.optim import Schedule
from vidssl.learner import Learner, StepOutput
from vidssl.registry import ConfigError, NonNegativeFloat, NonNegativeInt, PositiveInt

RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
BROADCAST = "forward_sync_buffers" if RENAMED else "broadcast_buffers"  # renamed between torch 2.8 and 2.13


@dataclass(frozen=True)
class TrainerOptions:
    """Section `trainer` of the configuration."""

    accumulate: PositiveInt  # batches of the loader per step of the optimizer
    clip_grad: NonNegativeFloat  # largest norm of the gradient; 0: no limit
    channels_last: Literal["auto"] | bool  # memory format of convolutions
    log_every: PositiveInt  # steps
    save_every: PositiveInt  # steps; the end of an epoch is saved too
    keep_every: NonNegativeInt  # epochs between states that are kept as epoch-N.pt; 0: only last and best
    pictures_every: NonNegativeInt  # epochs; 0: no pictures
    batch_norm: Literal["local", "sync", "frozen"]  # statistics of a rank's batch, of all ranks' batches, or unchanged
    broadcast_buffers: bool  # rank 0's batch norm statistics and queues for all ranks, at each step


@dataclass(frozen=True)
class Session:
    """Task, log and device of a training, and what is saved with its weights."""

    task: str
    log: Log
    config: dict[str, Any]
    seed: int
    device: torch.device
    precision: Precision
    file: Path | None = None  # of the state; None: a short training, which is repeated rather than resumed
    classes: Sequence[str] = ()  # names of the learner's classes, by label


class Loader(Protocol):
    """Batches of each epoch; `skip`: batches at its start that were used before."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]: ...


@dataclass
class Progress:
    """Position of a training; what resuming needs besides the weights."""

    epoch: int = 0  # completed epochs
    batch: int = 0  # batches of the current epoch that were used
    step: int = 0  # steps of the optimizer
    metrics: int = 0  # bytes of metrics.jsonl
    recent: list[dict[str, float]] = field(default_factory=list)  # scalars of the steps since the last line
    last: dict[str, float] = field(default_factory=dict)  # scalars of the last line
    epoch_loss: float = 0.0  # sum over the steps of the current epoch
    best: dict[str, float] = field(default_factory=dict)  # metrics of the epoch whose state is best.pt


AfterEpoch = Callable[[int, int], dict[str, float] | None]  # (epoch, step) -> metrics


class Trainer:
    """Trains a learner and saves its states; `fit` resumes from the saved state."""

    def __init__(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        session: Session,
        options: TrainerOptions,
        *,
        epochs: int,
        max_steps: int | None,
    ):
        self.learner, self.optimizer, self.schedule = learner, optimizer, schedule
        self.session, self.options, self.epochs, self.max_steps = session, options, epochs, max_steps
        self.device, self.half = session.device, HALF.get(session.precision)
        self.channels_last = use_channels_last(options.channels_last, session.precision, session.device)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(session.device.type, enabled=session.precision == "fp16")
        self.progress = Progress(metrics=session.log.position())
        self.meters = Meters(session.task)
        self.steps_per_epoch = self.total_steps = 0

    def fit(self, loader: Loader, after_epoch: AfterEpoch | None = None) -> Progress:
        """Train to the end, from the saved state if there is one.

        after_epoch(epoch, step): metrics of the task's validation, the primary one first; {} for epochs without one.
        The best state is the one with the highest primary metric, or, for tasks without validation (None), the one
        after the epoch with the lowest mean loss.
        """
        model = self.prepare()
        self.steps_per_epoch = len(loader) // self.options.accumulate
        self.total_steps = self.steps_per_epoch * self.epochs
        if self.max_steps is not None:
            self.total_steps = min(self.total_steps, self.max_steps)
        self.meters.start()
        with (
            distributed.noting_signals(),
            self.session.log.bar(self.session.task, self.total_steps, self.progress.step) as bar,
        ):
            while self.progress.step < self.total_steps or self._is_epoch_complete():
                self._epoch(model, loader, bar)
                if self._is_epoch_complete():
                    self._end_epoch(after_epoch)
        self._flush()
        self.save()
        return self.progress

    def _is_epoch_complete(self) -> bool:
        """Whether all batches of the current epoch were used but its end is still to come; a run may stop there."""
        return 0 < self.progress.batch == self.steps_per_epoch * self.options.accumulate

    def _epoch(self, model: nn.Module, loader: Loader, bar: Bar) -> None:
        """Train until the epoch is complete or the last step is done."""
        progress = self.progress
        batches = ToDevice(loader.epoch(progress.epoch, progress.batch), self.device)
        self._train_mode()
        while not self._is_epoch_complete() and progress.step < self.total_steps:
            self._step_or_stop(model, batches)
            if self.meters.steps == 1:
                self._warn_of_little_room()
            if progress.step % self.options.log_every == 0:
                self._flush()
            bar.advance(1, f"epoch {progress.epoch + 1}/{self.epochs} {self.meters.note()}")
            if progress.step % self.options.save_every == 0 and progress.step < self.total_steps:
                self.save()
            reason = distributed.stop_asked()
            if reason:
                self._stop(reason)

    def _step_or_stop(self, model: nn.Module, batches: Iterator[Batch]) -> None:
        """A step; if a signal ends the wait for its first batch, and only this rank waits, the state is saved."""
        taken = self.progress.batch
        try:
            self.step(model, batches)
        except distributed.Stopped as stopped:
            if distributed.world() == 1 and self.progress.batch == taken:
                self._stop(stopped.reason)
            raise

    def _stop(self, reason: int) -> NoReturn:
        self.save()
        message = f"{self.session.task} stopped at step {self.progress.step}, saved in {self.session.file}"
        raise distributed.Stopped(message, reason) from None

    def step(self, model: nn.Module, batches: Iterator[Batch]) -> bool:
        """Take one optimizer step on `accumulate` batches. Returns False if it only filled the method's queues."""
        self._set_rates()
        distributed.seed_step(self.session.seed, self.progress.step)
        if self.session.config.get("compile") == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the last step's graphs may be overwritten
        outputs = []
        for part in range(self.options.accumulate):
            batch = self._next_batch(batches)
            is_last = part == self.options.accumulate - 1
            with _no_sync(model, not is_last):
                outputs.append(self._forward_backward(model, batch))
            self.progress.batch += 1
        is_updated = all(output.update for output in outputs)
        if is_updated:
            self._update()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.meters.add(self._rates(), outputs)
        return is_updated

    def _next_batch(self, batches: Iterator[Batch]) -> Batch:
        started = time.monotonic()
        batch = next(batches)
        self.meters.waited += time.monotonic() - started
        self.meters.clips += batch.count * distributed.world()
        return batch

    def _forward_backward(self, model: nn.Module, batch: Batch) -> StepOutput:
        with torch.no_grad():
            views = self._formatted(self.learner.views(batch))
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            output = model(views)
        if output.update:
            self.scaler.scale(output.loss / self.options.accumulate).backward()
        return output

    def _update(self) -> None:
        if self.options.clip_grad > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.options.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _end_epoch(self, after_epoch: AfterEpoch | None) -> None:
        """Validate and save the state at the end of an epoch."""
        progress = self.progress
        self._read_back()
        mean_loss = progress.epoch_loss / self.steps_per_epoch
        progress.epoch, progress.batch, progress.epoch_loss = progress.epoch + 1, 0, 0.0
        metrics = after_epoch(progress.epoch, progress.step) if after_epoch else None
        if metrics:
            self.session.log.scalars(self.session.task, progress.step, float(progress.epoch), metrics)
        self._keep_best({"loss": mean_loss} if metrics is None else metrics)
        self.save()
        self._keep_epoch()

    # -- preparation

    def prepare(self) -> nn.Module:
        """Move the learner to its device, load the saved state if there is one, and wrap it for all ranks."""
        self.learner.to(self.device)
        for parameter in self.learner.parameters():
            parameter.data = self._to_memory_format(parameter.data)
        if self.device.type == "cpu" and self.half is not None:
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

    def _distributed(self) -> nn.Module:
        if distributed.world() == 1:
            return self.learner
        is_plain = self.options.accumulate == 1 and not self.session.config.get("compile")  # else no static graph
        broadcast: dict[str, Any] = {BROADCAST: self.options.broadcast_buffers}
        model = DistributedDataParallel(
            self.learner,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=self.learner.static_graph and is_plain,
            **broadcast,
        )
        if self.device.type == "cpu" and distributed.world() > 2:
            model.register_comm_hook(None, distributed.ordered_sum)
        return model

    def _formatted(self, views: Any) -> Any:
        return type(views)(*map(self._to_memory_format, views)) if self.channels_last else views

    def _to_memory_format(self, value: Any) -> Any:
        """Convert clips and weights of 3D convolutions to the chosen memory format."""
        if self.channels_last and isinstance(value, Tensor) and value.ndim == 5:
            return value.contiguous(memory_format=torch.channels_last_3d)
        return value

    # -- learning rates and scalars

    def _set_rates(self) -> None:
        factor = self.schedule.factor(self.progress.step / self.steps_per_epoch, self.epochs)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def _rates(self) -> dict[str, float]:
        """Learning rates as they are logged: lr, and lr_1, ... of groups with other base rates."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        others = {f"lr_{i}": rate for i, rate in enumerate(rates) if self.base_rates[i] != self.base_rates[0]}
        return {"lr": rates[0]} | others

    def _read_back(self) -> None:
        rows = self.meters.read_back(self.progress.step)
        self.progress.recent += rows
        for row in rows:
            self.progress.epoch_loss += row["loss"]

    def _flush(self) -> None:
        """Log the means since the last line."""
        self._read_back()
        progress = self.progress
        if progress.recent:
            progress.last = mean_of(progress.recent)
            epoch = progress.step / self.steps_per_epoch
            self.session.log.scalars(self.session.task, progress.step, epoch, progress.last)
        progress.recent = []

    def last_scalars(self) -> dict[str, float]:
        """Scalars of the last line; empty if nothing was trained."""
        return dict(self.progress.last)

    # -- state

    def save(self, file: Path | None = None) -> None:
        """Save the state, by default to the session's file."""
        self._read_back()
        file = file or self.session.file
        if file is None:
            return
        distributed.barrier()
        self.progress.metrics = self.session.log.position()
        if self.session.log.is_main:
            save_state(file, self.state())

    def _warn_of_little_room(self) -> None:
        """Once the optimizer has its buffers, the size of a state is known; a new one is written beside the old one."""
        file, log = self.session.file, self.session.log
        if file is None or not log.is_main:
            return
        buffers = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.learner.state_dict().values(), *(value for value in buffers if isinstance(value, Tensor))]
        size = sum(tensor.nbytes for tensor in tensors)
        needed = size * (1 + sum(not path.exists() for path in (file, self._named("best"))))
        if self.options.keep_every:
            needed += size * ((self.epochs - self.progress.epoch) // self.options.keep_every)
        free = disk.free(file.parent)
        if free < needed:
            log.say(
                f"warning: {disk.shown(file.parent)}: {disk.human(free)} free, but {disk.human(needed)} wanted "
                f"for states of {disk.human(size)} each, of which one is written beside the old one"
            )

    def _keep_best(self, metrics: dict[str, float]) -> None:
        """Save the state as best.pt if its epoch is the best so far."""
        if not metrics or self.session.file is None:
            return
        name, value = next(iter(metrics.items()))
        before = self.progress.best.get(name)
        if before is None or (value < before if name == "loss" else value > before):
            self.progress.best = dict(metrics)
            self.save(self._named("best"))

    def _keep_epoch(self) -> None:
        every, epoch = self.options.keep_every, self.progress.epoch
        if every and epoch % every == 0 and self.session.file is not None and self.session.log.is_main:
            keep_copy(self.session.file, self._named(f"epoch-{epoch}"))

    def _named(self, name: str) -> Path:
        """Path beside the state: best.pt for last.pt, linear.best.pt for linear.last.pt."""
        assert self.session.file is not None
        return self.session.file.with_name(self.session.file.name.replace("last", name))

    def state(self) -> dict[str, Any]:
        return {
            "task": self.session.task,
            "config": self.session.config,
            "learner": {name: value.detach().cpu() for name, value in self.learner.state_dict().items()},
            "backbone_prefix": _prefix(self.learner),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.session.precision,
            "progress": vars(self.progress).copy(),
            **({"classes": list(self.session.classes)} if self.session.classes else {}),
        }

    def _restore(self) -> None:
        file, task, log = self.session.file, self.session.task, self.session.log
        if file is None or not file.exists():
            return
        state = load_state(file)
        saved, classes = state.get("classes"), list(self.session.classes)
        if saved is not None and saved != classes:
            before, now = (f"{len(names)} ({', '.join(names[:3])}, ...)" for names in (saved, classes))
            raise ConfigError(
                f"{file}: was trained on other classes, {before}; the data set has {now}; output=OTHER starts anew"
            )
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        for values in self.optimizer.state.values():
            values.update({name: self._to_memory_format(value) for name, value in values.items()})
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        log.rewind(self.progress.metrics)
        log.say(f"{task}: continues at step {self.progress.step}, from {file}")
        if state.get("precision", self.session.precision) != self.session.precision:
            log.say(f"{task}: began in {state['precision']} on another device, continues in {self.session.precision}")


def _prefix(learner: Learner) -> str:
    """Prefix of the backbone's names in the learner's state dict."""
    return next(name + "." for name, module in learner.named_modules() if module is learner.backbone)


def _no_sync(model: nn.Module, skip_sync: bool) -> AbstractContextManager:
    """Skip the all-reduce of gradients, for batches before the last of a step."""
    return model.no_sync() if skip_sync and isinstance(model, DistributedDataParallel) else nullcontext()
