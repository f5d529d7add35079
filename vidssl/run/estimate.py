"""Estimate printed by check_only: work, cost and files of each task, and preparation before the first one."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vidssl import build
from vidssl.data.cache import not_made
from vidssl.data.loader import DataOptions
from vidssl.data.manifest import Listing, omissions
from vidssl.engine.disk import human
from vidssl.ranks.submit import LAUNCHERS
from vidssl.registry import read_options
from vidssl.run.check import read_tasks
from vidssl.tasks.costs import Cost, Costs, operations, pluralize


def estimate(config: dict[str, Any], output: Path) -> list[str]:
    """Printable lines about a checked configuration."""
    costs = Costs(config)
    parts = task_costs(costs)
    chosen = " ".join(f"{key}={config[key]['name']}" for key in ("method", "backbone", "dataset"))
    head = f"The configuration is sound: {chosen}, seed {config['seed']}, {pluralize(costs.ranks, 'rank')}"
    lines = [line for part in parts for line in part.lines]
    lines += left_out(costs.listings) + to_render(costs.listings.values()) + to_copy(costs.listings.values(), config)
    lines += _total([part.flops for part in parts])
    lines += disk(output, {name: size for part in parts for name, size in part.files.items()}, config)
    lines += LAUNCHERS.build(config["launcher"]).plan(config)
    return [head, *(f"  {line}" for line in lines)]


def task_costs(costs: Costs) -> list[Cost]:
    """Costs of every task, in order."""
    return [task.estimate(name, costs) for name, task in read_tasks(costs.config).items()]


def left_out(listings: Mapping[str, Listing]) -> list[str]:
    """Listed videos that are not on disk, one line per split."""
    lines = {split: omissions(listing) for split, listing in listings.items()}
    return [f"{split} split: {line}" for split, line in lines.items() if line]


def to_render(listings: Iterable[Listing]) -> list[str]:
    """Number of synthetic videos that are still to be rendered."""
    missing = [
        listing.root / recipe.name
        for listing in listings
        for recipe in listing.recipes
        if not (listing.root / recipe.name).exists()
    ]
    return [f"first renders {len(missing):,} videos into {missing[0].parent}"] if missing else []


def to_copy(listings: Iterable[Listing], config: dict[str, Any]) -> list[str]:
    """Number of small copies that are still to be made; their size is not known in advance."""
    options = DataOptions(**read_options(DataOptions, config["data"]))
    if options.cache is None:
        return []
    paths: dict[Path, set[str]] = {}
    for listing in listings:
        if not any(recipe.is_mask for recipe in listing.recipes):
            folder = build.cache_folder(listing, options)
            paths.setdefault(folder, set()).update(video.path for video in listing.videos)
    counts = {folder: not_made(videos, folder) for folder, videos in paths.items()}
    return [f"first makes {count:,} small copies in {folder}" for folder, count in counts.items() if count]


def _total(flops: list[int | None]) -> list[str]:
    counted = [count for count in flops if count is not None]
    if len(counted) < len(flops) or not sum(counted):
        return []
    return [f"in all {operations(sum(counted))} of convolutions and matrix products, a multiply-add being two"]


def disk(output: Path, files: dict[str, int], config: dict[str, Any]) -> list[str]:
    """Files that the run leaves, and whether there is space: a new file is complete before it replaces the old one."""
    folder = next(path for path in (output, *output.parents) if path.exists())
    free, total = shutil.disk_usage(folder).free, sum(files.values())
    logs = ["config.yaml", "run.json", "result.json", "metrics.jsonl", "train.log", "tensorboard/"]
    draws = "pretrain" in config and config["trainer"]["pictures_every"]
    logs += ["pictures/"] if draws or "visualize" in config else []
    shown = output.relative_to(Path.cwd()) if output.is_relative_to(Path.cwd()) else output
    lines = [f"leaves {human(total)} and logs in {shown}, where {human(free)} are free"]
    lines += [f"  {', '.join(f'{name} {human(size)}' for name, size in files.items())}"] if files else []
    lines.append(f"  {', '.join(logs)}")
    if free < 2 * total:
        lines.append(
            f"warning: {human(free)} free, but {human(2 * total)} needed: files are written beside the old ones"
        )
    return lines
