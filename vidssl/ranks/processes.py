"""Many ranks for one run: started here, or found as torchrun or srun started them.

A rank that fails is never waited for: the others end within seconds, and its own traceback is what is told.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from vidssl.engine import distributed
from vidssl.engine.distributed import STOP_SIGNALS, PeerLost, Stopped
from vidssl.engine.pool import end_with
from vidssl.ranks import slurm
from vidssl.registry import ConfigError, RunError

GRACE_SECONDS = 5.0  # seconds that the other ranks have to say what they know once one has failed
LAUNCHED_BY = "torchrun or srun"


class RankLost(RunError):
    """A rank ended without a word."""


# ---------------------------------------------------------------------------------------------------------------------
# Found


def adopt_launcher() -> bool:
    """Whether torchrun or srun started this process as one of many ranks; then the variables of torchrun are set.

    Raises ConfigError if they are set in part, or if nodes have different numbers of ranks.
    """
    if "RANK" not in os.environ and slurm.tasks() > 1:
        os.environ.update(_as_torchrun_says_it(os.environ))
    if "RANK" not in os.environ:
        return False
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"RANK={os.environ['RANK']} is set in the environment, but {', '.join(missing)} not: start the ranks with "
            "torchrun or srun, or unset RANK"
        )
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    return int(os.environ["WORLD_SIZE"]) > 1


def _as_torchrun_says_it(told: Mapping[str, str]) -> dict[str, str]:
    """SLURM's variables of a task as those of torchrun. All tasks of a step find the same port."""
    step = f"{told['SLURM_JOB_ID']}.{told.get('SLURM_STEP_ID', 0)}"
    here, *others = told["SLURM_STEP_TASKS_PER_NODE"].split(",")
    if others:
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={told['SLURM_STEP_TASKS_PER_NODE']}: srun started different numbers of ranks "
            "on the nodes; srun --nodes=M --ntasks-per-node=N"
        )
    nodes = slurm.hostnames(told["SLURM_STEP_NODELIST"]) or [told["SLURMD_NODENAME"]]
    return {
        "RANK": told["SLURM_PROCID"],
        "WORLD_SIZE": told["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": told["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": here.split("(")[0],
        "MASTER_ADDR": nodes[0],
        "MASTER_PORT": distributed.meeting_port(step),
    }


def adopted(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with as many devices and nodes as the launcher started ranks. Raises ConfigError if the user
    asked for others."""
    ranks, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    found = {"devices": here, "nodes": ranks // here}
    asked = {key: config[key] for key in found}
    if asked not in ({"devices": 1, "nodes": 1}, found):
        told = ", ".join(f"{key}={value}" for key, value in asked.items())
        raise ConfigError(f"{told}: {LAUNCHED_BY} started {ranks // here} x {here} ranks; leave these keys out")
    if config["launcher"]["name"] != "local":
        raise ConfigError(f"launcher={config['launcher']['name']}: {LAUNCHED_BY} started this already; launcher=local")
    return {**config, **found}


# ---------------------------------------------------------------------------------------------------------------------
# Started


def start_ranks(work: Callable[..., Any], count: int, accelerator: str, arguments: tuple) -> Any:
    """Run `work(*arguments)` in `count` processes on this machine; what the first returns.

    If one fails, the others are ended and its error is raised here, with its traceback as a note; RankLost if it was
    killed. Signals that ask to stop are passed on; Stopped if that was what ended them.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting:
        ranks: dict[Connection, BaseProcess] = {}
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited: signals wait until a rank can take them
        try:
            for rank in range(count):
                answers, answer = spawn.Pipe(duplex=False)
                place = (rank, count, f"file://{meeting}/store", accelerator, os.getpid())
                process = spawn.Process(target=_as_rank, args=(place, answer, work, arguments), name=f"rank {rank}")
                process.start()
                answer.close()
                ranks[answers] = process
            with _passing_on(list(ranks.values())):
                result = _result(ranks)
                for process in ranks.values():
                    process.join(GRACE_SECONDS)
                return result
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            for process in ranks.values():
                process.kill()
                process.join()


def _as_rank(place: tuple, answer: Connection, work: Callable[..., Any], arguments: tuple) -> None:
    rank, count, store, accelerator, parent = place
    end_with(parent)  # so that nothing goes on writing into the run's folder
    mine = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in mine.items()})
    if os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine, whatever its name resolves to
    try:
        with distributed.process_group(accelerator, store):
            try:
                answer.send(work(*arguments))
            except BaseException as error:  # told before the others notice that this rank has left
                answer.send(_portable(error, rank))
                if not isinstance(error, Stopped):
                    os._exit(1)
    except BaseException as error:
        translated = distributed.translate_error(error) if isinstance(error, Exception) else error
        answer.send(_portable(translated, rank))


def _portable(error: BaseException, rank: int) -> BaseException:
    """The error as it can be sent to another process: with its traceback as a note."""
    if isinstance(error, Stopped):
        return error
    if not isinstance(error, Exception) or type(error).__module__.split(".")[0] not in ("vidssl", "builtins"):
        error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    error.add_note(f"on rank {rank}:\n" + "".join(traceback.format_tb(error.__traceback__)))
    return error


def _result(ranks: dict[Connection, BaseProcess]) -> Any:
    """The first rank's answer when all have answered; raises what went wrong first."""
    waiting, results, failures, deadline = dict(ranks), {}, [], float("inf")
    while waiting and time.monotonic() < deadline:
        for ready in wait(list(waiting), timeout=0.5):
            process = waiting.pop(ready)
            try:
                answer = ready.recv()
            except EOFError:
                process.join()
                answer = _lost(process)
            results[process.name] = answer
            if process.name == "rank 0" and isinstance(answer, Stopped):  # it is the last that has something to save
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if isinstance(answer, BaseException) and not isinstance(answer, Stopped):
                failures.append(answer)
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    stopped = [answer for answer in results.values() if isinstance(answer, Stopped)]
    if stopped and all(isinstance(failure, PeerLost) for failure in failures):
        raise stopped[0]
    if failures:
        raise min(failures, key=_distance_from_the_cause)
    return results["rank 0"]


def _distance_from_the_cause(failure: Exception) -> int:
    return 0 if isinstance(failure, RankLost) else 2 if isinstance(failure, PeerLost) else 1


def _lost(process: BaseProcess) -> RankLost:
    code = process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    hint = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
    return RankLost(
        f"{process.name} {how}{hint}; the other ranks were ended. The same command continues from the last saved state."
    )


@contextmanager
def _passing_on(processes: list[BaseProcess]) -> Iterator[None]:
    """While this holds, signals that ask to stop go to the ranks."""

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
