"""Check of a whole configuration before any work: reports every problem at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from torch import nn

from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.build import UNTRAINED, TrainOptions
from vidssl.data.loader import DataOptions
from vidssl.data.manifest import Listing, too_many_omissions
from vidssl.data.sources import SOURCES
from vidssl.engine import disk, distributed, records
from vidssl.engine.checkpoint import Weights
from vidssl.engine.device import Precision
from vidssl.engine.loop import TrainerOptions
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS
from vidssl.ranks import slurm
from vidssl.ranks.submit import LAUNCHERS
from vidssl.registry import (
    ConfigError,
    FilePath,
    PositiveFloat,
    PositiveInt,
    Registry,
    Seed,
    UnitInterval,
    check_options,
    expand_home,
    read_options,
    schema,
)
from vidssl.tasks import TASKS, Context, Task


@dataclass(frozen=True)
class RunOptions:
    """Top-level keys of the configuration; the sections of tasks come on top."""

    seed: Seed
    devices: PositiveInt
    nodes: PositiveInt
    accelerator: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto"] | Precision
    compile: bool | Literal["graphs"]
    output: FilePath | None
    checkpoint: FilePath | None
    resume: Literal["auto", "never"]
    retry_failed: bool
    stop_after_minutes: PositiveFloat | None
    check_only: bool
    score: str | None
    clip_frames: PositiveInt
    frame_stride: PositiveInt
    crop_size: PositiveInt
    flip: UnitInterval
    protocol: str
    recipe: str
    method: Annotated[dict, METHODS]
    backbone: Annotated[dict, BACKBONES]
    dataset: Annotated[dict, SOURCES]
    data: DataOptions
    trainer: TrainerOptions
    launcher: Annotated[dict, LAUNCHERS]


def options_of(section: str, part: str | None = None) -> Any:
    """Class or function whose options a section of the configuration sets; RunOptions for a top-level key.

    part: the section's `name`, for parts that are chosen by name; without it the answer for them is None.
    """
    if section in TASKS.names():
        return TASKS.get(section)
    annotation = schema(RunOptions).get(section, RunOptions)
    registry = next((each for each in get_args(annotation) if isinstance(each, Registry)), None)
    if registry is not None:
        return registry.get(part) if part in registry.names() else None
    return annotation if is_dataclass(annotation) else RunOptions


def task_names(config: dict[str, Any]) -> list[str]:
    """Names of the run's tasks, in the order in which they run."""
    return [name for name in config if name in TASKS.names()]


def read_tasks(config: dict[str, Any]) -> dict[str, Task]:
    """Tasks of a configuration whose options have been checked, by name, in the order in which they run."""
    return {name: TASKS.get(name)(**read_options(TASKS.get(name), config[name])) for name in task_names(config)}


def adopt_backbone(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Configuration with the checkpoint's backbone, unless the overrides choose one.

    Raises ConfigError if the protocol's averaging may depend on the backbone.
    """
    is_chosen = any(word.lstrip("+").startswith(("backbone", "experiment", "sweeps")) for word in overrides)
    if is_chosen or config.get("checkpoint") in (None, "", UNTRAINED):
        return config
    try:
        section = build.read_weights(config["checkpoint"]).section
    except ConfigError:
        return config  # reported by check
    if section and section != config["backbone"] and config.get("protocol") in ("fame", "fima") and _averages(config):
        raise ConfigError(
            f"protocol={config['protocol']}: how clips are averaged may depend on the backbone; the checkpoint has "
            f"backbone={section['name']}, add that"
        )
    return {key: section if key == "backbone" and section else value for key, value in config.items()}


def _averages(config: dict[str, Any]) -> bool:
    return any(isinstance(config[name], dict) and "average" in config[name] for name in task_names(config))


Listings = dict[tuple[str, str], Listing]  # (dataset section, split) -> videos


def check(config: dict[str, Any], known: Listings | None = None) -> list[str]:
    """Problems of a resolved configuration, one line each; empty if it can run.

    known: listings read before, so that the jobs of a sweep read each folder once.
    """
    names = task_names(config)
    problems = check_options(RunOptions, {k: v for k, v in config.items() if k not in names}, "")
    for name in names:
        problems += check_options(TASKS.get(name), config[name], name)
    if not names:
        problems.append(f"task: choose one or more of {', '.join(TASKS.names())}")
    if problems:
        return problems  # what follows relies on types
    tasks = read_tasks(config)
    for task in tasks.values():
        problems += task.problems()
    problems += _devices(config)
    if config["launcher"]["name"] == "local" and any(task.splits for task in tasks.values()):
        problems += slurm.idle_gpus(config)
    with torch.device("meta"):  # no memory, no weights
        backbone = BACKBONES.build(config["backbone"])
    method, flaws = _method(config, backbone)
    listings = {} if known is None else known
    context = Context(
        config, tasks, lambda split: _known_listing(config, split, listings), backbone, backbone.strides, method
    )
    problems += flaws + _sizes(context)
    problems += _data(config, tasks, listings)
    problems += _folders(config, names)
    for task in tasks.values():
        problems += task.conflicts(context)
    problems += _checkpoint(config, tasks, listings)
    if config["score"] is not None and config["score"].partition(".")[0] not in tasks:
        problems.append(f"score={config['score']}: must be TASK.METRIC with one of the tasks {', '.join(tasks)}")
    return list(dict.fromkeys(problems))


def _devices(config: dict[str, Any]) -> list[str]:
    """Whether this machine, or the launcher's, has the devices."""
    problems = LAUNCHERS.build(config["launcher"]).problems(config)
    if config["launcher"]["name"] == "slurm":
        return problems  # devices of the cluster's nodes are not known here
    visible, devices = torch.cuda.device_count(), config["devices"]
    if config["accelerator"] == "cuda" and not visible:
        problems.append("accelerator=cuda: no GPU is visible here; allowed: auto, cpu")
    on_cuda = config["accelerator"] != "cpu" and visible > 0
    if on_cuda and devices > visible:
        problems.append(f"devices={devices}: {visible} GPUs are visible here")
    is_for_another_machine = config["check_only"] and not visible
    processors = distributed.processors()
    if config["accelerator"] == "auto" and not visible and devices > processors and not is_for_another_machine:
        problems.append(
            f"devices={devices}: no GPU is visible here, and there are {processors} processors; accelerator=cpu starts "
            "as many processes on them nevertheless"
        )
    if config["trainer"]["batch_norm"] == "sync" and not on_cuda:
        problems.append("trainer.batch_norm=sync: PyTorch has it for GPUs alone; allowed here: local, frozen")
    if config["compile"] == "graphs" and not on_cuda:
        problems.append("compile=graphs: CUDA graphs need a GPU; allowed here: false, true")
    if config["precision"] == "fp16" and not on_cuda:
        problems.append("precision=fp16: needs a GPU; allowed here: auto, fp32, bf16")
    return problems


def _folders(config: dict[str, Any], names: list[str]) -> list[str]:
    """Whether files can be written where the user wants them."""
    problems = [] if config["output"] is None else records.unwritable(Path(expand_home(config["output"])), names)
    for key in ("index_folder", "cache_folder"):
        if config["data"][key] is not None:
            problems += disk.unwritable(f"data.{key}", Path(expand_home(config["data"][key])))
    return problems


# ---------------------------------------------------------------------------------------------------------------------
# Sizes of clips and batches


def _method(config: dict[str, Any], backbone: nn.Module) -> tuple[Learner | None, list[str]]:
    """The method on the meta device, or None and the reasons why it cannot be built."""
    try:
        with torch.device("meta"):
            return METHODS.build(config["method"], backbone, nn.Identity()), []
    except ConfigError as error:
        return None, error.problems
    except Exception as error:  # of a user's own method, which is answered in one line as well
        return None, [
            f"method={config['method']['name']}: cannot be built without values of tensors "
            f"({type(error).__name__}: {' '.join(str(error).split())}); the check builds it on the meta device, "
            "see docs/adding-a-method.md"
        ]


def _sizes(context: Context) -> list[str]:
    """Clips against the backbone's strides, batches against ranks."""
    problems, config = [], context.config
    name, (time, space) = config["backbone"]["name"], context.strides
    for key, task in context.tasks.items():
        frames, size = (config[key].get(option) for option in ("clip_frames", "crop_size"))
        if frames is not None and frames % time:
            problems.append(
                f"{_typed_key(config, key, 'clip_frames')}={frames}: backbone={name} needs a multiple of {time}"
            )
        if size is not None and size % space:
            below, above = size // space * space, (size // space + 1) * space
            near = f"{below} or {above}" if below else str(above)
            problems.append(
                f"{_typed_key(config, key, 'crop_size')}={size}: backbone={name} needs a multiple of {space}; {near}"
            )
        if isinstance(task, TrainOptions) and task.batch_size % context.parts:
            problems.append(
                f"{key}.batch_size={task.batch_size}: must be a multiple of {context.parts}, devices * nodes * "
                "trainer.accumulate"
            )
    return problems


def _typed_key(config: dict[str, Any], task: str, key: str) -> str:
    """The key as a user would set it: run-wide unless the task differs."""
    return key if config[task][key] == config[key] else f"{task}.{key}"


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


def _data(config: dict[str, Any], tasks: Mapping[str, Task], known: Listings) -> list[str]:
    """Whether the data set is there and has what the tasks read."""
    problems = []
    for key, task in tasks.items():
        for split in task.splits:
            try:
                listing = _listing(config, split, known)
            except ConfigError as error:
                problems += error.problems
                continue
            if not listing.videos:
                problems.append(
                    f"dataset.root={listing.root}: the {split} split of dataset={config['dataset']['name']} has no "
                    f"videos, task={key} needs some"
                )
            if split != "train" and split in task.evaluates:
                problems += too_many_omissions(split, listing, None, config["data"]["most_missing"])
            if task.labelled and not listing.classes:
                problems.append(
                    f"dataset.root={listing.root}: the videos have no classes, task={key} needs them; "
                    + (f"{listing.unlabelled}; " if listing.unlabelled else "")
                    + "put them in class folders, or choose task=pretrain"
                )
            if split == "train" and isinstance(task, TrainOptions) and len(listing.videos) < task.batch_size:
                problems.append(
                    f"{key}.batch_size={task.batch_size}: the training split has only {len(listing.videos)} videos"
                )
    return problems


def _listing(config: dict[str, Any], split: str, known: Listings) -> Listing:
    """Videos of a split, read once. Raises ConfigError if the data set does not have the split."""
    key = (repr(config["dataset"]), split)
    if key not in known:
        name = config["dataset"]["name"]
        if split not in ("train", "test") and not _listing(config, "test", known).recipes:
            raise ConfigError(f"dataset={name}: has no {split} split; it has train and test")
        known[key] = build.read_listing(config["dataset"], split)
    return known[key]


def _known_listing(config: dict[str, Any], split: str, known: Listings) -> Listing | None:
    """Videos of a split; None if it cannot be read, which _data reports."""
    try:
        return _listing(config, split, known)
    except ConfigError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def _checkpoint(config: dict[str, Any], tasks: Mapping[str, Task], known: Listings) -> list[str]:
    """Whether each task finds what it starts from: the run's checkpoint, or what an earlier task leaves."""
    checkpoint = config["checkpoint"]
    available: Literal["nothing", "backbone", "classifier"] = "nothing"
    weights = None  # of the run's checkpoint, while its classifier is in use
    if checkpoint == UNTRAINED:
        available = "backbone"
    elif checkpoint is not None:
        try:
            weights = build.read_weights(checkpoint)
        except ConfigError as error:
            return error.problems
        if weights.section is not None and weights.section != config["backbone"]:
            return [build.backbone_mismatch(checkpoint, weights.section, config["backbone"])]
        misfits = build.misfits(weights, config["backbone"])
        if misfits:
            return [f"checkpoint={checkpoint}: {problem}" for problem in misfits]
        available = "classifier" if weights.classifier else "backbone"
    problems = []
    for key, task in tasks.items():
        if task.starts_from != "nothing" and available == "nothing":
            problems.append(
                f"checkpoint: missing; task={key} starts from one: give a file or a run's folder, put pretrain before "
                f"it (task=[pretrain,{key}]), or checkpoint=none for an untrained network"
            )
        elif task.starts_from == "classifier" and available != "classifier":
            problems.append(f"checkpoint={checkpoint}: task={key} needs a classifier, which finetune and linear leave")
        elif weights is not None and weights.classifier and (task.starts_from == "classifier" or task.reads_classifier):
            problems += _other_classes(config, key, task, weights, known)
        if task.leaves != "nothing":
            available, weights = task.leaves, None
    return problems


def _other_classes(config: dict[str, Any], key: str, task: Task, weights: Weights, known: Listings) -> list[str]:
    """Whether the checkpoint's classifier fits the backbone and has the data set's classes."""
    with torch.device("meta"):  # no memory, no weights
        width = BACKBONES.build(config["backbone"]).out_channels
    weight, bias = (weights.classifier[name].shape for name in ("weight", "bias"))
    if len(weight) not in (2, 3) or weight[1] != width or bias != weight[:1]:
        return [
            f"checkpoint={config['checkpoint']}: its classifier, weight {list(weight)} and bias {list(bias)}, does not "
            f"fit the {width} channels of backbone={config['backbone']['name']}; task={key} needs one that does"
        ]
    hint = f"; {task.without_classifier}" if task.without_classifier else ""
    for split in task.splits:
        listing = _known_listing(config, split, known)
        try:
            if listing is not None and listing.classes:
                build.class_rows(weights, listing.classes, config["dataset"]["name"])
        except ConfigError as error:
            return [
                f"checkpoint={config['checkpoint']}: {error}; task={key} needs the data set it was trained on, "
                f"or a classifier for this one first, from task=linear or finetune{hint}"
            ]
    return []
