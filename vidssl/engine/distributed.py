"""Ranks: who am I, and the few things that ranks do together. With one process each of these is the identity.

Nothing outside of this module and of ranks.py, which starts them, touches torch.distributed, except the trainer that
wraps its learner.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vidssl.registry import ConfigError, RunError

COLLECTIVE_LIMIT = timedelta(minutes=10)  # no step of a training takes that long: a rank is gone


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_here() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if world() > 1 else 1


@contextmanager
def process_group(accelerator: str, store: str = "env://") -> Iterator[None]:
    """While this holds, this process is one rank of many: RANK and WORLD_SIZE say which, `store` where they meet."""
    global _patient
    here = device(accelerator)
    if here.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    try:
        dist.init_process_group(
            "nccl" if here.type == "cuda" else "gloo", init_method=store, timeout=COLLECTIVE_LIMIT,
            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
            device_id=here if here.type == "cuda" else None,
        )  # fmt: skip
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ConfigError(
            f"MASTER_PORT={os.environ['MASTER_PORT']}: another program on {os.environ['MASTER_ADDR']} has this port, "
            "where ranks should meet; set MASTER_PORT in the environment of all ranks to one that is free"
        ) from None
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    dist.barrier(group=_patient)  # a rank that stops at once would leave the others waiting for it in the line above
    try:
        yield
    except Stopped:
        _leave_group()
        raise
    else:
        _leave_group()
    # after an error nothing is left in order: that would wait for ranks that may be gone


def meeting_port(job: str) -> str:
    """Where the ranks of a job meet unless MASTER_PORT says so: a port that they all find without a word.

    Below those that systems hand out to any program that connects to something (32768 and above, on Linux).
    """
    return os.environ.get("MASTER_PORT") or str(random.Random(job).randint(20_000, 30_000))


def _leave_group() -> None:
    global _patient
    _patient = None
    dist.destroy_process_group()


# A group of its own: ranks wait for hours while the first one scans a data set, and flags should not wait for the GPU
_patient: dist.ProcessGroup | None = None


def gather(part: Tensor) -> Tensor:
    """The ranks' equally shaped tensors, one after the other along the first axis. Carries no gradient."""
    part = part.detach().contiguous()
    if world() == 1:
        return part
    parts = part.new_empty(world() * part.shape[0], *part.shape[1:])
    _all_gather(parts, part)
    return parts


_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # newer torch renames it


def gather_lists(own: list[Tensor]) -> list[Tensor]:
    """The ranks' lists of CPU tensors, of any lengths, one after the other."""
    if world() == 1:
        return own
    lists: list[list[Tensor]] = [[] for _ in range(world())]
    dist.all_gather_object(lists, own, group=_patient)
    return [part for each in lists for part in each]


def broadcast_object(value: Any) -> Any:
    """Plain values, as the first rank has them."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, 0, group=_patient)
    return values[0]


def local_rows(whole: Tensor) -> Tensor:
    """This rank's share of a gathered tensor."""
    return whole.chunk(world())[rank()]


def shared_permutation(count: int) -> Tensor:
    """A random order of 0 .. count - 1, the same on all ranks, by the step's seed. int64 [count] on the CPU."""
    return torch.randperm(count, generator=_common)


def exchange(part: Tensor, order: Tensor) -> Tensor:
    """This rank's share of all ranks' rows in a new order: own_rows(gather(part)[order]), but only those rows travel.

    part [B, ...], order int64 [B * ranks] on the CPU -> [B, ...]. Carries no gradient.
    """
    part, size = part.detach(), len(part)
    if world() == 1:
        return part[order.to(part.device)]
    source = order // size  # the rank that has each row
    mine = source == rank()
    sent = part[(order[mine] - rank() * size).to(part.device)].contiguous()
    to_each = mine.view(world(), size).sum(dim=1).tolist()
    wanted = local_rows(source)
    received = torch.empty_like(sent)
    dist.all_to_all_single(
        received.view(torch.uint8), sent.view(torch.uint8), wanted.bincount(minlength=world()).tolist(), to_each
    )
    return received[wanted.argsort(stable=True).argsort().to(part.device)]


def to_autocast_dtype(clip: Tensor) -> Tensor:
    """A clip in the precision in which a network's first convolution takes it: half under autocast."""
    kind = clip.device.type
    has_autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return clip.to(torch.get_autocast_dtype(kind)) if has_autocast else clip


def mean(value: Tensor) -> Tensor:
    """Mean over the ranks, added up in their order."""
    return value if world() == 1 else _sum_in_order(gather(value[None])) / world()


def _sum_in_order(parts: Tensor) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def barrier() -> None:
    """Wait for all ranks, as long as it takes. Raises Stopped if a stop was asked a while ago."""
    if world() == 1:
        return
    waiting = dist.barrier(group=_patient, async_op=True)
    while not waiting.is_completed():  # wait() would take no signal
        stop_waiting()
        time.sleep(0.001)
    waiting.wait()  # raises what went wrong


def ordered_sum(state, bucket):  # torch compares annotations with types, and here they are texts
    """For DistributedDataParallel: the mean of gradients, added up in the order of the ranks.

    A ring adds in an order that depends on where in a bucket a number lies, and buckets change after the first step: so
    a run of three ranks that is interrupted would end with other last digits.
    """
    part = bucket.buffer()
    parts = part.new_empty(world() * len(part))
    done = _all_gather(parts, part, async_op=True).get_future()
    return done.then(lambda _: _sum_in_order(parts.view(world(), -1)) / world())


class PeerLost(RunError):
    """This rank can do nothing without another one that has ended."""


def translate_error(error: Exception) -> Exception:
    """The error, or in plain words that another rank is gone, where that is what it means."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    heard = [word for word in words if word in str(error)]
    if not isinstance(error, RuntimeError) or not heard:
        return error
    if asked_here():
        return _stopped(asked_here())  # so was the other one
    return PeerLost(
        f"another rank has ended, and this one with it ({heard[0]}); what that rank printed, or the system's log, says "
        "why. The same command continues from the last saved state."
    )


# ---------------------------------------------------------------------------------------------------------------------
# This process


def device(accelerator: str) -> torch.device:
    """Where this rank computes: its own GPU if there is one and it is wanted."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, visible = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if visible == 1 and "SLURM_STEP_ID" in os.environ:
        local = 0  # each task may be shown its own GPU alone
    if local >= visible:
        raise ConfigError(f"devices: rank {local} of this machine finds {visible} GPUs, and each rank needs one")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def processors() -> int:
    """How many this process may use; a cluster may lend fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for its next step, as PyTorch does on GPUs.

    glibc hands large blocks back to the system at once and gets each anew, page by page: a third of the time of a CPU
    step whose activations have 32 MB and more. Elsewhere than with glibc nothing happens.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


_common = torch.Generator()  # draws that all ranks share


def seed_step(seed: int, step: int) -> None:
    """Make torch's draws a function of (seed, step, rank), so that any step is a place to start again."""
    state = (seed * 1_000_003 + step) * 1_000_003
    _common.manual_seed((state + 1_000_002) % 2**63)  # no rank has this number
    state = (state + rank()) % 2**63
    torch.default_generator.manual_seed(state)  # torch.manual_seed costs a millisecond where there is no GPU
    if torch.cuda.is_available():
        torch.cuda.manual_seed(state)


# ---------------------------------------------------------------------------------------------------------------------
# Stopping in good order


class Stopped(Exception):
    """The run was asked to end, and its state is saved. reason: the signal that asked, or TIME_IS_OVER."""

    def __init__(self, message: str, reason: int = 0):
        super().__init__(message, reason)
        self.message, self.reason = message, reason

    def __str__(self) -> str:
        return self.message


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
TIME_IS_OVER = 1
AT_ONCE = 2.0  # seconds in which a terminal, a launcher and a cluster may all pass on one and the same wish
PATIENCE = 2.0  # seconds for which a wait goes on once a stop was asked: mostly it ends, and the step is saved
_asked = 0
_asked_at = 0.0
_deadline = float("inf")
_is_noting = False


@contextmanager
def stopping_on_signals(minutes: float | None = None) -> Iterator[None]:
    """While this holds, a stop signal raises Stopped where it comes, but within `noting_signals`; a second one ends the
    run at once.

    minutes: after so long it ends as if a signal had come.
    """
    global _asked, _deadline
    _asked = 0
    _deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def note(number: int, frame: object) -> None:
        global _asked, _asked_at
        if not _asked:
            _asked, _asked_at = number, time.monotonic()
            if not _is_noting:
                raise _stopped(number)
        elif time.monotonic() - _asked_at > AT_ONCE:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked while a rank starts
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked, _deadline = 0, float("inf")


@contextmanager
def noting_signals() -> Iterator[None]:
    """While this holds, a stop signal is noted, for a loop that has something to save and asks `stop_asked`."""
    global _is_noting
    before, _is_noting = _is_noting, True
    try:
        yield
    finally:
        _is_noting = before
    if _asked and not _is_noting:
        raise _stopped(_asked)


def _stopped(reason: int) -> Stopped:
    return Stopped("stopped; the run continues with this task", reason)


def asked_here() -> int:
    """Why this rank should stop, 0 if it should not; the others may not know yet."""
    return _asked or (TIME_IS_OVER if time.monotonic() > _deadline else 0)


def stop_waiting() -> None:
    """For waits that may never end. Raises Stopped if a stop was asked a while ago; other ranks may not know."""
    since = _asked_at if _asked else _deadline
    if time.monotonic() - since > PATIENCE:
        raise _stopped(asked_here())


def stop_asked() -> int:
    """Why any rank should stop, 0 if none should; the ranks agree on the answer."""
    if world() == 1:
        return asked_here()
    reason = torch.tensor(asked_here())
    dist.all_reduce(reason, dist.ReduceOp.MAX, group=_patient)
    return int(reason)


def stop_if_asked() -> None:
    """For loops that have nothing to save."""
    reason = stop_asked()
    if reason:
        raise _stopped(reason)
