"""One run from a configuration: check everything, take the folder, place the ranks, run the chain of tasks.

torch is imported only when there is work, so that questions about the configuration are answered at once.
"""

from __future__ import annotations

import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidssl.engine import disk, records
from vidssl.registry import ConfigError, RunError


class FailedBefore(Exception):
    """A job of a sweep failed when the sweep was started before, and nobody asked to try again."""


def main(
    cfg: DictConfig, output: Path, command: list[str], overrides: list[str], *, is_one_of_many: bool
) -> float | None:
    """Run a composed configuration in a folder; the run's score.

    is_one_of_many: a job of a sweep, which is not tried again by itself once it failed.
    Raises ConfigError before any work if it cannot run, Stopped if a signal ended it with its state saved.
    """
    from vidssl.engine import distributed
    from vidssl.ranks import processes, submit
    from vidssl.run.check import adopt_backbone, check, task_names

    config = adopt_backbone(plain(cfg), overrides)

    launched = processes.adopt_launcher()
    if launched:
        config = processes.adopted(config)
    names, again = task_names(config), _reports_again(config, output)
    known: dict = {}
    problems = check(config, known) + records.unwritable(output, names)
    problems += [] if again else records.folder_problems(config, output, partial(_what_moved, known))
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    if config["check_only"]:
        from vidssl.run.estimate import estimate

        print("\n".join(estimate(config, output)))
        return None
    if records.is_done(output, names) and not again:
        print(f"{output}: this run is done, see result.json; output=OTHER starts anew")
        return _score(config, records.read_json(output / "result.json"), names)
    record = records.read_json(output / "run.json")
    queued = submit.queued(record)
    if queued:
        print(f"{output}: job {queued} of this run is in the cluster's queue; scancel {queued} takes it out")
        return None
    if is_one_of_many and record.get("status") == "failed" and not config["retry_failed"]:
        reason = str(record["error"]).splitlines()[0]
        raise FailedBefore(f"{output}: failed before ({reason}); add retry_failed=true to try it again")
    arguments = (config, str(output), command, overrides)
    if config["launcher"]["name"] != "local":
        submit.submit_later(work, *arguments)
        return None
    if launched:
        with distributed.process_group(config["accelerator"]):
            result = work(*distributed.broadcast_object(arguments))
    elif config["devices"] == 1:
        result = work(*arguments)
    else:
        result = _in_many_processes(config, output, arguments)
    return _score(config, result, names)


def _what_moved(known: dict, then: dict[str, Any]) -> str | None:
    """What differs between the splits as they are listed now and as a run's record has them. known: see check."""
    from vidssl.data.manifest import differences, identity

    listings = {split: listing for (_, split), listing in known.items() if split in then}
    found = {split: differences(identity(listing), then[split]) for split, listing in listings.items()}
    return "; ".join(f"{split} split: {told}" for split, told in found.items() if told) if found else None


def _reports_again(config: dict[str, Any], output: Path) -> bool:
    """Whether the run is a report alone, in a folder that holds no other run: what it tells is new each time."""
    from vidssl.run.check import task_names

    return task_names(config) == ["report"] and records.read_json(output / "run.json").get("tasks", {}).keys() <= {
        "report"
    }


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        reason = (
            str(error.msg or error).splitlines()[0].rpartition(" raised while resolving interpolation: ")[2].strip('"')
        )
        raise ConfigError(f"{error.full_key or 'configuration'}: {reason}") from None


def work(config: dict[str, Any], output: str, command: list[str], overrides: list[str]) -> dict[str, Any]:
    """One rank's part of a run; the figures of its tasks. The first rank keeps the folder."""
    from vidssl.engine import distributed

    folder = Path(output)
    if distributed.rank() > 0:
        distributed.barrier()  # the folder is ready
        return run_tasks(config, folder)
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with records.only_here(folder):
        records.begin(folder, config, command, overrides)
        distributed.barrier()
        try:
            result = run_tasks(config, folder)
        except BaseException as error:
            stopped = isinstance(error, (distributed.Stopped, KeyboardInterrupt))
            records.end(folder, "preempted" if stopped else "failed", str(error) or type(error).__name__)
            raise
        records.end(folder, "done")
    return result


def _in_many_processes(config: dict[str, Any], output: Path, arguments: tuple) -> dict[str, Any]:
    from vidssl.engine import distributed
    from vidssl.ranks import processes

    try:
        return processes.start_ranks(work, config["devices"], config["accelerator"], arguments)
    except distributed.Stopped:
        raise
    except Exception as error:  # of any rank; the first may be gone and its record open
        if records.read_json(output / "run.json").get("status") in ("running", "failed"):
            records.end(output, "failed", str(error))
        raise


def run_tasks(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The chain of tasks, on one rank; its figures. Tasks that result.json holds already are not run again."""
    from vidssl.build import Run
    from vidssl.engine import distributed
    from vidssl.engine.device import prepare
    from vidssl.engine.log import Log
    from vidssl.registry import read_options
    from vidssl.run.check import task_names
    from vidssl.run.preflight import preflight
    from vidssl.tasks import TASKS

    log = Log(folder, rank=distributed.rank())
    run = Run(config, folder, log, distributed.device(config["accelerator"]), config["checkpoint"])
    prepare(run.precision, run.device)
    result = {} if _reports_again(config, folder) else records.read_json(folder / "result.json")
    begun = records.read_json(folder / "run.json").get("tasks", {})
    _header(run)
    try:
        with distributed.stopping_on_signals(config["stop_after_minutes"]):
            preflight(run, [name for name in task_names(config) if name not in result])
            for name in task_names(config):
                task = TASKS.get(name)
                if name in result:
                    if task.leaves != "nothing":
                        run.checkpoint = str(run.state_file(name))
                    continue
                if not run.state_file(name).exists():
                    log.rewind(begun.get(name, {}).get("metrics", log.position()))
                records.note_task(log, folder, name, log.position())
                options = TASKS.get(name)(**read_options(task, config[name]))
                started, cpu, run.speed, run.used = time.monotonic(), _cpu_seconds(), {}, {}
                figures = options(run)
                spent = {"seconds": time.monotonic() - started, "cpu_seconds": _cpu_seconds() - cpu, **run.speed}
                result = _finish_task(run, name, figures, spent)
    except (ConfigError, distributed.Stopped):
        raise
    except Exception as error:
        told = _explained(error, config, folder)
        if isinstance(told, RunError):
            log.note(f"error: {told}")
        elif not isinstance(told, distributed.Stopped):
            log.error(f"{type(told).__name__}: {told}")
        raise told from (None if told is error else error)
    finally:
        log.close()
    return result


def _explained(error: Exception, config: dict[str, Any], folder: Path) -> Exception:
    """The error, or one that says in a line what it means: a worker or another rank is gone, a disk is full."""
    from vidssl.data.loader import worker_lost
    from vidssl.engine import distributed

    kept = [config["data"][key] for key in ("index_folder", "cache_folder") if config["data"][key]]
    places = (folder, *map(Path, kept))
    return (
        worker_lost(error, config["data"]) or disk.translate_error(error, places) or distributed.translate_error(error)
    )


def _header(run: Any) -> None:
    """What runs, where, in what; and what is known to go wrong there."""
    from vidssl.engine.device import described, known_faults
    from vidssl.run.check import task_names

    config, log = run.config, run.log
    names = task_names(config)
    words = ["-".join(names), config["method"]["name"] if "pretrain" in names else "", config["backbone"]["name"]]
    told = " ".join(word for word in (*words, config["dataset"]["name"]) if word)
    log.say(f"{told}, seed {config['seed']}, on {described(run.precision, run.device)}, in {run.output}")
    for fault in known_faults(run.precision, run.device):
        log.say(f"warning: {fault}")


def _finish_task(run: Any, name: str, figures: dict[str, float], spent: dict[str, float]) -> dict[str, Any]:
    """Log and keep a task's figures; result.json is written last, so that it holds finished tasks only."""
    log, folder = run.log, run.output
    log.figures(name, figures, records.incomplete(run.used))
    result = {**records.read_json(folder / "result.json"), name: figures}
    if "motion_preference" in figures:
        result["motion_preference"] = figures["motion_preference"]
    if log.is_main:
        log.flush()
        record = records.read_json(folder / "run.json")
        record["tasks"][name] |= {what: round(value, 4) for what, value in spent.items()} | {"splits": run.used}
        records.write_json(folder / "run.json", record)
        records.write_json(folder / "result.json", result)
    return result


def _score(config: dict[str, Any], result: dict[str, Any], names: list[str]) -> float | None:
    """The figure that a sweeper gets."""
    if config["score"] is not None:
        task, _, figure = config["score"].partition(".")
        if figure not in result.get(task, {}):
            raise ConfigError(
                f"score={config['score']}: no such figure; there are {', '.join(sorted(records.flat(result)))}"
            )
        return result[task][figure]
    return next(iter(result[names[-1]].values()), None)


def _cpu_seconds() -> float:
    """Of this process and of its finished children, such as loader workers."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
