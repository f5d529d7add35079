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
    "output", "resume", "check_only", "score", "launcher", "data.workers", "data.prefetch", "data.index_folder",
    "data.processes",
)  # fmt: skip


def main(cfg: DictConfig, output: Path, command: list[str], overrides: list[str]) -> float | None:
    """Run a composed configuration in a folder; the run's score.

    Raises ConfigError before any work if it cannot run, Stopped if a signal ended it with its state saved.
    """
    from vidssl.check import adopt_backbone, check, task_names

    config = adopt_backbone(plain(cfg), overrides)

    problems = check(config) + _folder_problems(config, output)
    if problems:
        raise ConfigError(problems)
    names = task_names(config)
    if config["check_only"]:
        from vidssl.plan import plan

        print("\n".join(plan(config, output)))
        return None
    if _is_done(output, names):
        print(f"{output}: this run is done, see result.json; output=OTHER starts anew")
        return _score(config, _read_json(output / "result.json"), names)
    output.mkdir(parents=True, exist_ok=True)
    with _only_here(output):
        _write(output / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**config, "output": str(output)})))
        record = _begin_record(output, command, overrides)
        try:
            result = _placed(config, output)
        except BaseException as error:
            from vidssl.distributed import Stopped

            stopped = isinstance(error, (Stopped, KeyboardInterrupt))
            _end_record(output, record, "preempted" if stopped else "failed", str(error) or type(error).__name__)
            raise
        _end_record(output, record, "done")
    return _score(config, result, names)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain containers."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {error.msg or error}") from None


def run_tasks(config: dict[str, Any], output: str) -> dict[str, Any]:
    """The chain of tasks, on one rank; its figures. Tasks that result.json holds already are not run again."""
    from vidssl import distributed
    from vidssl.build import Run
    from vidssl.check import task_names
    from vidssl.engine.log import Log
    from vidssl.registry import read_options
    from vidssl.tasks import TASKS

    folder = Path(output)
    log = Log(folder, rank=distributed.rank())
    run = Run(config, folder, log, distributed.device(config["accelerator"]), config["checkpoint"])
    if run.device.type == "cpu":
        distributed.keep_freed_memory()
    result = _read_json(folder / "result.json")
    begun = _read_json(folder / "run.json").get("tasks", {})
    _header(log, config, folder, run.device)
    try:
        with distributed.stopping_on_signals():
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


# ---------------------------------------------------------------------------------------------------------------------
# Placing


def _placed(config: dict[str, Any], output: Path) -> dict[str, Any]:
    if config["devices"] == 1:
        return run_tasks(config, str(output))
    from vidssl import distributed

    return distributed.start_ranks(run_tasks, config["devices"], config["accelerator"], (config, str(output)))


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


def _begin_record(output: Path, command: list[str], overrides: list[str]) -> dict[str, Any]:
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
    return record


def _end_record(output: Path, record: dict[str, Any], status: str, error: str | None = None) -> None:
    tasks = _read_json(output / "run.json").get("tasks", {})
    _write_json(output / "run.json", {**record, "status": status, "end": _now(), "error": error, "tasks": tasks})


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
