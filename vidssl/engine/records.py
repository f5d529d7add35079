"""The folder of a run: its configuration, its record (run.json), its figures (result.json), who works in it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vidssl.engine import disk
from vidssl.engine.text import printable
from vidssl.registry import ConfigError

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 75  # exit status of a run's process
# Keys that change nothing in the metrics, so a run may be continued with other values; recipe and protocol are names of
# what other keys say
NEUTRAL = (
    "output", "recipe", "protocol",
    "resume", "retry_failed", "check_only", "score", "launcher", "stop_after_minutes", "trainer.save_every",
    "trainer.keep_every", "data.workers", "data.prefetch", "data.index_folder", "data.processes",
    "data.cache_folder", "data.most_damaged", "data.most_missing",
)  # fmt: skip

PLACES = ("dataset.root", "dataset.annotations", "dataset.train_list", "dataset.test_list")  # where the data set is

# Kept free while a run works, so that it can say how it ended when the disk is full
RESERVE, RESERVED = ".reserve", 16384


def folder_problems(
    config: dict[str, Any], output: Path, moved: Callable[[dict[str, Any]], str | None] = lambda splits: None
) -> list[str]:
    """Whether the folder holds another run. One that has not saved anything yet does not count.

    moved: called where the data set is at another place, with the identity of each split as the run's record has it;
    says what differs, "" if nothing does, None if that cannot be known.
    """
    file = output / "config.yaml"
    if not file.exists() or not holds_work(output):
        return []
    if config["resume"] == "never":
        return [f"output={output}: holds a run already, and resume=never; choose another folder or resume=auto"]
    before = OmegaConf.to_container(OmegaConf.load(file))
    ours, theirs = flat(config), flat(before)
    differing = sorted(
        key for key in ours.keys() | theirs.keys()
        if not key.startswith(NEUTRAL) and ours.get(key, "absent") != theirs.get(key, "absent")
    )  # fmt: skip
    if differing and set(differing) <= set(PLACES):
        changed = moved(data_record(output).get("splits", {}))
        if changed:
            return [f"output={output}: {elsewhere(config)} has other data than this run began with: {changed}; "
                    "choose another folder"]  # fmt: skip
        differing = differing if changed is None else []
    if not differing:
        return []
    told = "; ".join(f"{key}={ours.get(key, 'absent')} (there {theirs.get(key, 'absent')})" for key in differing[:5])
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return [f"output={output}: holds a run with another configuration: {told}{more}; choose another folder"]


def holds_work(output: Path) -> bool:
    """Whether a run has left in this folder what another one would lose or mix with its own."""
    return bool(read_json(output / "result.json") or list(output.glob("*.pt")))


def places(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that say where the data set is."""
    return {key: value for key, value in flat(config).items() if key in PLACES}


def elsewhere(config: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in places(config).items() if value is not None)


def data_record(output: Path) -> dict[str, Any]:
    """places: where the data set was when the run last read it; splits: the identity of each. {} before that."""
    return read_json(output / "run.json").get("data", {})


def note_data(output: Path, config: dict[str, Any], splits: dict[str, dict[str, Any]]) -> None:
    """Keep what data the run reads, and from where."""
    before = data_record(output)
    record = {"places": places(config), "splits": {**before.get("splits", {}), **splits}}
    if record != before:
        write_json(output / "run.json", {**read_json(output / "run.json"), "data": record})


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, of nested sections."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


@contextmanager
def only_here(output: Path, patience: float = 2.0) -> Iterator[None]:
    """Refuse to work in a folder in which another process works; the lock goes with the process that held it.

    patience: seconds for which one that only looks into the folder may hold it.
    """
    deadline = time.monotonic() + patience
    with (output / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    message = f"output={output}: another process works in this folder; choose another"
                    raise ConfigError(message) from None
                time.sleep(0.1)
        yield


def is_done(output: Path, names: list[str]) -> bool:
    result = read_json(output / "result.json")
    return bool(result) and all(name in result for name in names)


def unwritable(output: Path, names: list[str]) -> list[str]:
    """A line if the run's folder cannot be written or made; one that holds all results need not be written."""
    problems = disk.unwritable("output", output)
    return [] if problems and os.path.isdir(output) and is_done(output, names) else problems


def begin(output: Path, config: dict[str, Any], command: list[str], overrides: list[str]) -> None:
    """This process works in the folder from now on, alone."""
    for file in output.glob(".*"):
        if file.suffix[1:].isdigit():  # what a killed process did not finish writing
            file.unlink()
    with disk.writing(output / RESERVE, lambda: RESERVED):
        (output / RESERVE).write_bytes(os.urandom(RESERVED))  # random: some file systems keep zeros in no room
    before = read_json(output / "run.json")
    started = {
        "host": platform.node(),
        "process": os.getpid(),
        "start": before.get("start", _now()),
        "starts": [*before.get("starts", []), _now()],
        "job": _job(),
    }
    _enter(output, config, "running", command, overrides, started)


def submit(output: Path, config: dict[str, Any], command: list[str], overrides: list[str]) -> Callable[[], None]:
    """A job of a cluster will work in the folder. Returns what undoes this, should the cluster refuse it."""
    output.mkdir(parents=True, exist_ok=True)
    files = [output / "run.json", output / "config.yaml"]
    before = [file.read_text() if file.exists() else None for file in files]

    def restore() -> None:
        for file, text in zip(files, before, strict=True):
            file.unlink() if text is None else write(file, text)

    _enter(output, config, "submitted", command, overrides, {"start": _now()})
    return restore


def note_job(output: Path, job: dict[str, Any]) -> None:
    """Which job it is, unless it works already and says so itself."""
    with suppress(ConfigError), only_here(output, patience=0):
        record = read_json(output / "run.json")
        if record["status"] == "submitted":
            write_json(output / "run.json", {**record, "job": job})


def _enter(
    output: Path, config: dict[str, Any], status: str, command: list[str], overrides: list[str], more: dict[str, Any]
) -> None:
    before = read_json(output / "run.json")
    record = {
        "status": status,
        "command": command,
        "overrides": overrides,
        "end": None,
        "error": None,
        "git": git() or before.get("git"),  # a job runs a copy of the code, which git does not know
        "versions": versions(),
        "tasks": before.get("tasks", {}),
    }
    write(output / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({**config, "output": str(output)})))
    write_json(output / "run.json", {**before, **record, **more})


def end(output: Path, status: str, error: str | None = None) -> None:
    """The last record of a start; it has room on a full disk, too."""
    error = error and printable(error)
    record = {**read_json(output / "run.json"), "status": status, "end": _now(), "error": error}
    (output / RESERVE).unlink(missing_ok=True)
    try:
        write_json(output / "run.json", record)
    except disk.DiskError:
        if status == "done":
            raise
        _overwrite(output / "run.json", json.dumps(record, indent=2) + "\n")


def _overwrite(file: Path, text: str) -> None:
    """Where a full disk has no room for a second small file, the blocks of the first one are there; if they do not
    suffice, the record stays as it is, and the error that is on its way counts."""
    if file.exists() and len(text.encode()) <= 512 * file.stat().st_blocks:
        with suppress(OSError), file.open("r+b") as out:
            out.write(text.encode())
            out.truncate()


def incomplete(splits: dict[str, dict[str, int]]) -> str:
    """Of how many listed videos a task's metrics are: "of 12 of 13 test videos", "" if of all."""
    parts = [f"{count['videos']} of {count['listed']} {split}" for split, count in splits.items()
             if count["videos"] < count["listed"]]  # fmt: skip
    return f"of {' and '.join(parts)} videos" if parts else ""


def end_if_lost(output: Path, error: str) -> None:
    """For jobs that are known to have ended: they should have said how."""
    if read_json(output / "run.json")["status"] in ("submitted", "running"):
        end(output, "failed", error)


def _job() -> dict[str, Any] | None:
    """The cluster's job that this process is, if it is one."""
    if os.environ.get("SUBMITIT_EXECUTOR") is None:
        return None
    import submitit

    job = submitit.JobEnvironment()
    return {"cluster": job.cluster, "id": job.job_id, "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0))}


def note_task(log: Any, folder: Path, name: str, position: int) -> None:
    """Where the task's lines of metrics.jsonl begin."""
    if log.is_main:
        record = read_json(folder / "run.json")
        record["tasks"].setdefault(name, {"metrics": position, "seconds": 0.0, "cpu_seconds": 0.0})
        write_json(folder / "run.json", record)


def read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def write_json(file: Path, content: dict[str, Any]) -> None:
    write(file, json.dumps(content, indent=2) + "\n")


def write(file: Path, text: str) -> None:
    """Put a text in place whole. Raises DiskError."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    content = printable(text).encode()
    with disk.writing(file, lambda: len(content)):
        try:
            unfinished.write_bytes(content)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


@cache
def git() -> dict[str, Any] | None:
    """Commit of the code that runs, and whether files differ from it."""
    home = Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (home / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(home), *words], capture_output=True, text=True).stdout.strip()

    return {"commit": ask("rev-parse", "HEAD") or None, "changed": bool(ask("status", "--porcelain"))}


def versions() -> dict[str, str]:
    names = ("vidssl", "torch", "av", "numpy", "kornia", "hydra-core", "omegaconf")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
