"""What every task that scores videos tells, and the files that it leaves."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vidssl import build
from vidssl.build import Run
from vidssl.engine.checkpoint import write_atomically
from vidssl.engine.text import printable
from vidssl.evaluation.metrics import accuracy, bounds, class_rows, hits


def scored(run: Run, task: str, scores: Callable[[str], dict[str, Tensor]]) -> dict[str, float]:
    """Figures of the test split; of swapped backgrounds, too, where the data set has them.

    scores: split -> value [N, classes], label, index int64 [N]. Leaves TASK-classes.csv and TASK-scores.safetensors of
    the test split.
    """
    test = scores("test")
    if run.log.is_main:
        write_files(run.output, task, test, build.listing(run, "test").classes)
    found = figures(test, run.seed)
    if build.has_split(run, "test_swap"):
        found |= {f"swap_{name}": value for name, value in figures(scores("test_swap"), run.seed).items()}
    return found


def rehearse(run: Run) -> None:
    """Write both files with one row and remove them: what cannot be written is known before training."""
    classes = build.listing(run, "test").classes
    row = {"value": torch.zeros(1, len(classes)), "label": torch.zeros(1).long(), "index": torch.zeros(1).long()}
    try:
        write_files(run.output, ".rehearsal", row, classes)
    finally:
        for file in run.output.glob(".rehearsal-*"):
            file.unlink()


def figures(result: dict[str, Tensor], seed: int) -> dict[str, float]:
    """In percent: top1, top5, the mean of the classes' top1, and the 95 % interval of top1 over videos."""
    scores, label = result["value"], result["label"]
    return accuracy(scores, label) | bounds("top1", hits(scores, label), seed)


def write_files(folder: Path, task: str, result: dict[str, Tensor], classes: list[str]) -> None:
    rows = class_rows(result["value"], result["label"], [printable(name) for name in classes])

    def write_table(file: Path) -> None:
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["class", "videos", "top1", "confused_with", "confused"])
            for row in rows:
                top1 = "" if row.top1 is None else f"{row.top1:.2f}"
                writer.writerow([row.name, row.videos, top1, row.confused_with, row.confused])

    tensors = {"scores": result["value"].float(), "label": result["label"], "index": result["index"]}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(folder / f"{task}-classes.csv", write_table)
    write_atomically(folder / f"{task}-scores.safetensors", lambda file: save_file(tensors, file))
