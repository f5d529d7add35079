"""One run from a configuration: check everything, take the folder, place the ranks, run the chain of tasks.

torch is imported only when there is work, so that questions about the configuration are answered at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vidssl.registry import ConfigError

# Keys that change nothing in the figures, so a run may be continued with other values
NEUTRAL = (
    "output", "resume", "retry_failed", "check_only", "score", "launcher", "stop_after_minutes", "trainer.save_every",
    "trainer.keep_every", "data.workers", "data.prefetch", "data.index_folder",
    "data.processes",
)  # fmt: skip


class FailedBefore(Exception):
    """A job of a sweep failed when the sweep was started before, and nobody asked to try again."""


def main(
    cfg: DictConfig, output: Path, command: list[str], overrides: list[str], *, is_one_of_many: bool
) -> float | None:
    """Run a composed configuration in a folder; the run's score.

    is_one_of_many: a job of a sweep, which is not tried again by itself once it failed.
    Raises ConfigError before any work if it cannot run, Stopped if a signal ended it with its state saved.
    """
    from vidssl import distributed, ranks
    from vidssl.check import adopt_backbone, check, task_names

    config = adopt_backbone(plain(cfg), overrides)

    launched = ranks.adopt_launcher()
    if launched:
        config = ranks.adopted(config)
    problems = check(config) + _folder_problems(config, output)
    if problems:
        raise ConfigError(problems)
    names = task_names(config)
    if config["check_only"]:
        _plan(config, names, output)
        return None
    if _is_done(output, names):
        print(f"{output}: this run is done, see result.json; output=OTHER starts anew")
        return _score(config, _read_json(output / "result.json"), names)
    record = _read_json(output / "run.json")
    if is_one_of_many and record.get("status") == "failed" and not config["retry_failed"]:
        reason = str(record["error"]).splitlines()[0]
        raise FailedBefore(f"{output}: failed before ({reason}); add retry_failed=true to try it again")
    arguments = (config, str(output), command, overrides)
    if launched:
        with distributed.joined(config["accelerator"]):
            result = work(*distributed.from_first(arguments))
    elif config["devices"] == 1:
        result = work(*arguments)
    else:
        result = _in_many_processes(config, output, arguments)
    return _score(config, result, names)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {error.msg or error}") from None


def work(config: dict[str, Any], output: str, command: list[str], overrides: list[str]) -> dict[str, Any]:
    """One rank's part of a run; the figures of its tasks. The first rank keeps the folder."""
    from vidssl import distributed

    folder = Path(output)
    if distributed.rank() > 0:
        distributed.barrier()  # the folder is ready
        return run_tasks(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_here(folder):
        _write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**config, "output": output})))
        _begin_record(folder, command, overrides)
        distributed.barrier()
        try:
            result = run_tasks(config, folder)
        except BaseException as error:
            stopped = isinstance(error, (distributed.Stopped, KeyboardInterrupt))
            _end_record(folder, "preempted" if stopped else "failed", str(error) or type(error).__name__)
            raise
        _end_record(folder, "done")
    return result


def _in_many_processes(config: dict[str, Any], output: Path, arguments: tuple) -> dict[str, Any]:
    from vidssl import distributed, ranks

    try:
        return ranks.start_ranks(work, config["devices"], config["accelerator"], arguments)
    except distributed.Stopped:
        raise
    except Exception as error:  # of any rank; the first may be gone and its record open
        if _read_json(output / "run.json").get("status") in ("running", "failed"):
            _end_record(output, "failed", str(error))
        raise


def run_tasks(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The chain of tasks, on one rank; its figures. Tasks that result.json holds already are not run again."""
    from vidssl import distributed
    from vidssl.build import Run
    from vidssl.check import task_names
    from vidssl.engine.log import Log
    from vidssl.registry import read_options
    from vidssl.tasks import TASKS

    log = Log(folder, rank=distributed.rank())
    run = Run(config, folder, log, distributed.device(config["accelerator"]), config["checkpoint"])
    if run.device.type == "cpu":
        distributed.keep_freed_memory()
    result = _read_json(folder / "result.json")
    begun = _read_json(folder / "run.json").get("tasks", {})
    _header(log, config, folder, run.device)
    try:
        with distributed.stopping_on_signals(config["stop_after_minutes"]):
            for name in task_names(config):
                task = TASKS.get(name)
                if name in result:
                    if task.leaves != "nothing":
                        run.checkpoint = str(run.state_file(name))
                    continue
                if not run.state_file(name).exists():
                    log.rewind(begun.get(name, {}).get("metrics", log.position()))
                _note_task(log, folder, name, log.position())
                options = TASKS.get(name)(**read_options(task, config[name]))
                started, cpu, run.speed = time.monotonic(), _cpu_seconds(), {}
                figures = options(run)
                spent = {"seconds": time.monotonic() - started, "cpu_seconds": _cpu_seconds() - cpu, **run.speed}
                result = _finish_task(log, folder, name, figures, spent)
    except Exception as error:
        if not isinstance(error, (ConfigError, distributed.Stopped)):
            log.error(f"{type(error).__name__}: {error}")
        raise
    finally:
        log.close()
    return result


def _header(log: Any, config: dict[str, Any], folder: Path, device: Any) -> None:
    from vidssl.check import task_names

    names = task_names(config)
    words = ["-".join(names), config["method"]["name"] if "pretrain" in names else "", config["backbone"]["name"]]
    told = " ".join(word for word in (*words, config["dataset"]["name"]) if word)
    log.say(f"{told}, seed {config['seed']}, on {device}, in {folder}")


# ---------------------------------------------------------------------------------------------------------------------
# The folder of a run


def _folder_problems(config: dict[str, Any], output: Path) -> list[str]:
    """Whether the folder holds another run. One that has not saved anything yet does not count."""
    file = output / "config.yaml"
    if not file.exists() or not (_read_json(output / "result.json") or list(output.glob("*.pt"))):
        return []
    if config["resume"] == "never":
        return [f"output={output}: holds a run already, and resume=never; choose another folder or resume=auto"]
    before = OmegaConf.to_container(OmegaConf.load(file))
    ours, theirs = _flat(config), _flat(before)
    differing = sorted(
        key for key in ours.keys() | theirs.keys()
        if not key.startswith(NEUTRAL) and ours.get(key, "absent") != theirs.get(key, "absent")
    )  # fmt: skip
    if not differing:
        return []
    told = "; ".join(f"{key}={ours.get(key, 'absent')} (there {theirs.get(key, 'absent')})" for key in differing[:5])
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return [f"output={output}: holds a run with another configuration: {told}{more}; choose another folder"]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


@contextmanager
def _only_here(output: Path) -> Iterator[None]:
    """Refuse to work in a folder in which another process works; the lock goes with the process that held it."""
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"output={output}: another process works in this folder; choose another") from None
        yield


def _is_done(output: Path, names: list[str]) -> bool:
    result = _read_json(output / "result.json")
    return bool(result) and all(name in result for name in names)


def _begin_record(output: Path, command: list[str], overrides: list[str]) -> None:
    before = _read_json(output / "run.json")
    record = {
        "status": "running",
        "command": command,
        "overrides": overrides,
        "host": platform.node(),
        "process": os.getpid(),
        "start": before.get("start", _now()),
        "starts": [*before.get("starts", []), _now()],
        "end": None,
        "error": None,
        "git": _git(),
        "versions": _versions(),
        "tasks": before.get("tasks", {}),
    }
    _write_json(output / "run.json", record)


def _end_record(output: Path, status: str, error: str | None = None) -> None:
    record = _read_json(output / "run.json")
    _write_json(output / "run.json", {**record, "status": status, "end": _now(), "error": error})


def _note_task(log: Any, folder: Path, name: str, position: int) -> None:
    """Where the task's lines of metrics.jsonl begin."""
    if log.is_main:
        record = _read_json(folder / "run.json")
        record["tasks"].setdefault(name, {"metrics": position, "seconds": 0.0, "cpu_seconds": 0.0})
        _write_json(folder / "run.json", record)


def _finish_task(
    log: Any, folder: Path, name: str, figures: dict[str, float], spent: dict[str, float]
) -> dict[str, Any]:
    """Log and keep a task's figures; result.json is written last, so that it holds finished tasks only."""
    log.figures(name, figures)
    result = {**_read_json(folder / "result.json"), name: figures}
    if "motion_preference" in figures:
        result["motion_preference"] = figures["motion_preference"]
    if log.is_main:
        log.flush()
        record = _read_json(folder / "run.json")
        record["tasks"][name] |= {what: round(value, 4) for what, value in spent.items()}
        _write_json(folder / "run.json", record)
        _write_json(folder / "result.json", result)
    return result


def _score(config: dict[str, Any], result: dict[str, Any], names: list[str]) -> float | None:
    """The figure that a sweeper gets."""
    if config["score"] is not None:
        task, _, figure = config["score"].partition(".")
        if figure not in result.get(task, {}):
            raise ConfigError(f"score={config['score']}: no such figure; there are {', '.join(sorted(_flat(result)))}")
        return result[task][figure]
    return next(iter(result[names[-1]].values()), None)


def _plan(config: dict[str, Any], names: list[str], output: Path) -> None:
    """What would run, for check_only."""
    from vidssl.build import read_listing

    parts = " ".join(f"{key}={config[key]['name']}" for key in ("method", "backbone", "dataset"))
    print(f"The configuration is sound: {parts}, seed {config['seed']}, {config['devices'] * config['nodes']} rank(s)")
    for name in names:
        section = config[name]
        line = f"  {name}"
        if "epochs" in section:
            videos = len(read_listing(config["dataset"], "train").videos)
            steps = videos // section["batch_size"] * section["epochs"]
            steps = steps if section["max_steps"] is None else min(steps, section["max_steps"])
            line += f": {videos} videos, batches of {section['batch_size']}, {section['epochs']} epochs, {steps} steps"
        print(line)
    print(f"  into {output}")


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    _write(file, json.dumps(content, indent=2) + "\n")


def _write(file: Path, text: str) -> None:
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(file)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _cpu_seconds() -> float:
    """Of this process and of its finished children, such as loader workers."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _git() -> dict[str, Any] | None:
    """Commit of the code that runs, and whether files differ from it."""
    home = Path(__file__).resolve().parent.parent
    if shutil.which("git") is None or not (home / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(home), *words], capture_output=True, text=True).stdout.strip()

    return {"commit": ask("rev-parse", "HEAD") or None, "changed": bool(ask("status", "--porcelain"))}


def _versions() -> dict[str, str]:
    names = ("vidssl", "torch", "av", "numpy", "kornia", "hydra-core", "omegaconf")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
