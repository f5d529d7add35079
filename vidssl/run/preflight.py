"""Trial of what a run's tasks need, before the first of them starts.

A training of days should not end because its evaluation misses something. Rendered data sets are not tried: they are
made here, when they are first read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vidssl import build
from vidssl.build import ClipOptions, Run
from vidssl.clips import ClipPlan
from vidssl.data.manifest import Listing, Manifest, absent_classes, differences, identity, omissions, too_many_omissions
from vidssl.engine import distributed, records
from vidssl.registry import ConfigError, read_options
from vidssl.tasks import TASKS, Task


def preflight(run: Run, names: Sequence[str]) -> None:
    """Scan every split, decode clips of each evaluation, write a row of each file; log which videos are left out.

    names: tasks that are still to run. Raises ConfigError on all ranks if one of them could not be completed.
    """
    tasks = [TASKS.get(name)(**read_options(TASKS.get(name), run.config[name])) for name in names]
    logged: set[str] = set()
    problems: list[str] = []
    for task in tasks:
        for split, videos in manifests(run, task):
            files = build.listing(run, split)
            lines = _warnings(run, task, split, files, videos)
            for line in [line for line in lines if line not in logged]:
                run.log.say(f"warning: {line}")
            logged.update(lines)
            if split != "train":
                problems += too_many_omissions(split, files, videos, build.data_options(run).most_missing)
    if not problems and distributed.rank() == 0:
        problems = _other_data(run, tasks)
    if not problems and distributed.rank() == 0:
        problems = [problem for task in tasks for problem in _tried(run, task)]
    problems = distributed.broadcast_object(list(dict.fromkeys(problems)))
    if problems:
        raise ConfigError(problems)


def _other_data(run: Run, tasks: Sequence[Task]) -> list[str]:
    """Keep which data the run reads; what is wrong where they come from another place than before and are not equal."""
    known = records.data_record(run.output)
    splits = {split: identity(build.listing(run, split)) for task in tasks for split in task.splits}
    for task in tasks:
        splits |= {split: splits[split] | {"sizes": videos.sizes} for split, videos in manifests(run, task)}
    moved = bool(known) and records.holds_work(run.output) and known["places"] != records.places(run.config)
    if moved:
        changed = {split: differences(now, known["splits"].get(split, now)) for split, now in splits.items()}
        root = run.config["dataset"].get("root")
        problems = [
            f"dataset.root={root}: {split} split: {told} than when the run began; choose another folder"
            for split, told in changed.items() if told
        ]  # fmt: skip
        if problems:
            return problems
        run.log.say(f"the same data set at another place: {records.elsewhere(run.config)}")
    records.note_data(run.output, run.config, splits)
    return []


def _warnings(run: Run, task: Task, split: str, files: Listing, videos: Manifest) -> list[str]:
    """Differences between a split and the data set's files, one line each."""
    example = files.missing[0] if files.missing else None  # is named among the omissions
    lines = [f"{split} split: {line}" for line in files.remarks if example is None or example not in line]
    left_out = omissions(files, videos)
    lines += [f"{split} split: {left_out}"] if left_out else []
    return lines + (absent_classes(split, videos, _training(run, task)) if split != "train" else [])


def manifests(run: Run, task: Task) -> Iterator[tuple[str, Manifest]]:
    """Splits of the user's own videos that the task reads; those that are not scanned yet are scanned."""
    for split in dict.fromkeys((*task.trains_on, *task.evaluates)):
        if isinstance(task, ClipOptions) and not build.listing(run, split).recipes:
            window = task.clip_frames * task.frame_stride
            yield split, build.manifest(run, split, window, training=split in task.trains_on)


def _training(run: Run, task: Task) -> Manifest | None:
    """Videos whose classes the task's classifier or gallery has, if there are any."""
    return dict(manifests(run, task)).get("train")


def _tried(run: Run, task: Task) -> Iterator[str]:
    """Problems of the task's evaluation with one to three videos, and of the files that it writes."""
    crop = _evaluation_crop(task)
    for split, videos in manifests(run, task):
        if split in task.evaluates and isinstance(task, ClipOptions) and crop is not None:
            yield from _undecodable(run, task, crop, split, videos)
    task.rehearse(run)


def _evaluation_crop(task: Task) -> dict[str, Any] | None:
    """Spatial crop of the clips that a task evaluates; None if it evaluates none."""
    if not hasattr(task, "clips"):
        return None
    return getattr(task, "test_augmentation" if hasattr(task, "test_augmentation") else "augmentation").crop


def _undecodable(run: Run, clip: ClipOptions, crop: dict[str, Any], split: str, videos: Manifest) -> Iterator[str]:
    """Decode a clip of the first and the last video, and a third one if both fail: a problem if all of them do."""
    clips = build.dataset(run, videos, ClipPlan.uniform(1), crop, clip, training=False)
    last = len(videos) - 1
    reasons = {index: _reason(clips, index) for index in (0, last)}
    if all(reasons.values()):
        reasons[last // 2] = reasons.get(last // 2) or _reason(clips, last // 2)
    failed = [reason for reason in reasons.values() if reason]
    if len(failed) == len(reasons):
        yield f"{split} split: no clip of {len(failed)} tried videos can be made: {failed[0]}"
    else:
        for reason in failed:
            run.log.say(f"warning: {split} split: a video will be left out: {reason}")


def _reason(clips: build.ClipDataset, index: int) -> str | None:
    """Reason why a video gives no clip, or None."""
    failures = clips[0, index].failures
    return failures[0][1] if failures else None
