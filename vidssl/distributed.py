"""Ranks: who am I, and the few things that ranks do together. With one process each of these is the identity.

Nothing outside of this module touches torch.distributed, except the trainer that wraps its learner.
"""

from __future__ import annotations

import ctypes
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


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
    dist.all_gather_object(lists, own)
    return [part for each in lists for part in each]


def own_rows(whole: Tensor) -> Tensor:
    """This rank's share of a gathered tensor."""
    return whole.chunk(world())[rank()]


def shared_permutation(count: int, device: torch.device) -> Tensor:
    """A random order of 0 .. count - 1, drawn on rank 0, the same on all ranks. int64 [count]."""
    order = torch.randperm(count).to(device)
    if world() > 1:
        dist.broadcast(order, 0)
    return order


def mean(value: Tensor) -> Tensor:
    """Mean over the ranks."""
    if world() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world()


def barrier() -> None:
    if world() > 1:
        dist.barrier()


def device(accelerator: str) -> torch.device:
    """Where this rank computes: its own GPU if there is one and it is wanted."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


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


def start_ranks(work: Callable[..., Any], count: int, accelerator: str, arguments: tuple) -> Any:
    """Run `work(*arguments)` in `count` processes on this machine; what the first returns.

    If one fails, the others are ended and its error is raised here. Stopped if a signal ended them.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex, start_method="spawn", max_restarts=0,
    )  # fmt: skip
    results = elastic_launch(config, _as_rank)(work, accelerator, arguments)
    if isinstance(results[0], Stopped):
        raise results[0]
    return results[0]


def _as_rank(work: Callable[..., Any], accelerator: str, arguments: tuple) -> Any:
    backend = "nccl" if device(accelerator).type == "cuda" else "gloo"
    if backend == "gloo":
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        return work(*arguments)
    except Stopped as stopped:
        return stopped
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def seed_step(seed: int, step: int) -> None:
    """Make torch's draws a function of (seed, step, rank), so that any step is a place to start again."""
    state = (seed * 1_000_003 + step) * 1_000_003 + rank()
    torch.default_generator.manual_seed(state % 2**63)  # torch.manual_seed costs a millisecond where there is no GPU
    if torch.cuda.is_available():
        torch.cuda.manual_seed(state % 2**63)


# ---------------------------------------------------------------------------------------------------------------------
# Stopping in good order


class Stopped(Exception):
    """A signal asked the run to end and its state is saved."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
_asked = False


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """While this holds, a stop signal is noted and the loop ends at its next step; a second one ends it at once."""
    global _asked
    _asked = False

    def note(number: int, frame: object) -> None:
        global _asked
        if _asked:
            raise KeyboardInterrupt
        _asked = True

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_asked() -> bool:
    """Whether any rank was asked to stop; the ranks agree on the answer."""
    if world() == 1:
        return _asked
    flag = torch.tensor(int(_asked), device=torch.device("cuda") if dist.get_backend() == "nccl" else None)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def stop_if_asked() -> None:
    """For loops that have nothing to save."""
    if stop_asked():
        raise Stopped("stopped; the run continues with this task")
