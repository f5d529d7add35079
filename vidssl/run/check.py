"""Everything that can be wrong with a configuration, all of it at once, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.build import UNTRAINED
from vidssl.data.loader import DataOptions
from vidssl.data.manifest import Listing, too_many_omissions
from vidssl.data.sources import SOURCES
from vidssl.engine import disk, distributed, records
from vidssl.engine.checkpoint import Weights, load_backbone
from vidssl.engine.device import Precision
from vidssl.engine.loop import TrainerOptions
from vidssl.methods.contrast import METHODS
from vidssl.ranks import slurm
from vidssl.ranks.submit import LAUNCHERS
from vidssl.registry import (
    ConfigError,
    FilePath,
    PositiveFloat,
    PositiveInt,
    Seed,
    UnitInterval,
    check_options,
    expand_home,
    read_options,
)
from vidssl.tasks import TASKS, Task
from vidssl.tasks.classify import Linear


@dataclass(frozen=True)
class RunOptions:
    """The keys that stand at the top of the configuration, besides the tasks' sections."""

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


def task_names(config: dict[str, Any]) -> list[str]:
    """The run's tasks, in the order in which they were chosen."""
    return [name for name in config if name in TASKS.names()]


def adopt_backbone(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration with the backbone that the checkpoint names, unless the user chose one."""
    chosen = any(word.lstrip("+").startswith(("backbone", "experiment", "sweeps")) for word in overrides)
    if chosen or config.get("checkpoint") in (None, "", UNTRAINED):
        return config
    try:
        section = build.read_weights(config["checkpoint"]).section
    except ConfigError:
        return config  # told by check
    if section and section != config["backbone"] and config.get("protocol") in ("fame", "fima") and _averages(config):
        raise ConfigError(
            f"protocol={config['protocol']}: how clips are averaged may depend on the backbone; the checkpoint has "
            f"backbone={section['name']}, add that"
        )
    return {key: section if key == "backbone" and section else value for key, value in config.items()}


def _averages(config: dict[str, Any]) -> bool:
    return any(isinstance(config[name], dict) and "average" in config[name] for name in task_names(config))


Listings = dict[tuple[str, str], Listing]  # of a data set's section and a split


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
    tasks = {name: TASKS.get(name)(**read_options(TASKS.get(name), config[name])) for name in names}
    for task in tasks.values():
        problems += task.problems()
    problems += _devices(config)
    if config["launcher"]["name"] == "local" and any(task.splits for task in tasks.values()):
        problems += slurm.idle_gpus(config)
    problems += _sizes(config, tasks)
    known = {} if known is None else known
    problems += _data(config, tasks, known)
    problems += _rates(config)
    problems += _folders(config, names)
    problems += _checkpoint(config, tasks, known)
    problems += _chain(tasks)
    if "report" in tasks:
        problems += tasks["report"].folder_problems(config)
    if config["score"] is not None and config["score"].partition(".")[0] not in tasks:
        problems.append(f"score={config['score']}: must be TASK.FIGURE with one of the tasks {', '.join(tasks)}")
    return list(dict.fromkeys(problems))


def _devices(config: dict[str, Any]) -> list[str]:
    problems = LAUNCHERS.build(config["launcher"]).problems(config)
    if config["launcher"]["name"] == "slurm":
        return problems  # what the nodes have is not known here
    visible, devices = torch.cuda.device_count(), config["devices"]
    if config["accelerator"] == "cuda" and not visible:
        problems.append("accelerator=cuda: no GPU is visible here; allowed: auto, cpu")
    on_cuda = config["accelerator"] != "cpu" and visible > 0
    if on_cuda and devices > visible:
        problems.append(f"devices={devices}: {visible} GPUs are visible here")
    elsewhere = config["check_only"] and not visible  # a plan for a machine with GPUs
    processors = distributed.processors()
    if config["accelerator"] == "auto" and not visible and devices > processors and not elsewhere:
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


def _sizes(config: dict[str, Any], tasks: dict[str, Task]) -> list[str]:
    """Clips against the backbone's strides, batches against ranks."""
    problems = []
    name = config["backbone"]["name"]
    with torch.device("meta"):  # no memory, no weights
        backbone = BACKBONES.build(config["backbone"])
        time, space = backbone.strides
        try:
            method = METHODS.build(config["method"], backbone, nn.Identity())
        except ConfigError as error:
            method, problems = None, error.problems
        except Exception as error:  # of anybody's method, which should be answered in a line as well
            method = None
            problems.append(
                f"method={config['method']['name']}: cannot be built without values of tensors "
                f"({type(error).__name__}: {' '.join(str(error).split())}); the check builds it on the meta device, "
                "see docs/adding-a-method.md"
            )
    ranks = config["devices"] * config["nodes"]
    parts = ranks * config["trainer"]["accumulate"]
    for key, task in tasks.items():
        frames, size = getattr(task, "clip_frames", None), getattr(task, "crop_size", None)
        if frames is not None and frames % time:
            problems.append(
                f"{_whose(config, key, 'clip_frames')}={frames}: backbone={name} needs a multiple of {time}"
            )
        if size is not None and size % space:
            below, above = size // space * space, (size // space + 1) * space
            near = f"{below} or {above}" if below else str(above)
            problems.append(
                f"{_whose(config, key, 'crop_size')}={size}: backbone={name} needs a multiple of {space}; {near}"
            )
        fits = frames is not None and size is not None and frames % time == size % space == 0
        if fits and method is not None and (key == "pretrain" or _draws_inputs(key, task, tasks)):
            problems += method.problems(frames, task.frame_stride, size)
        batch = getattr(task, "batch_size", None)
        if batch is not None and hasattr(task, "epochs") and batch % parts:
            problems.append(
                f"{key}.batch_size={batch}: must be a multiple of {parts}, devices * nodes * trainer.accumulate"
            )
        if batch is not None and key == "pretrain" and batch // parts < 2:
            problems.append(
                f"{key}.batch_size={batch}: batch norm and negatives need 2 videos or more on each of {ranks} ranks"
            )
        elif batch == parts and fits and task.trains_backbone:
            problems += _lone_values(config, key, task, backbone)
    return problems


def _lone_values(config: dict[str, Any], key: str, task: Task, backbone: nn.Module) -> list[str]:
    """Whether some layer of batch norm gets one value of each channel from a single video, which it refuses."""
    norm, ranks, name = config["trainer"]["batch_norm"], config["devices"] * config["nodes"], config["backbone"]["name"]
    if norm == "frozen" or (norm == "sync" and ranks > 1):
        return []
    clip = torch.empty(1, 3, task.clip_frames, task.crop_size, task.crop_size, device="meta")
    try:
        backbone.train()(clip)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            return [
                f"{key}.batch_size={task.batch_size}: batch norm needs two values of each channel or more, and of one "
                f"video's {task.clip_frames} x {task.crop_size} x {task.crop_size} clip backbone={name} makes one; "
                f"allowed: {2 * task.batch_size} or more, larger clips, or trainer.batch_norm=frozen"
            ]
        raise
    return []


def _draws_inputs(key: str, task: Task, tasks: dict[str, Task]) -> bool:
    """Whether the task makes the method's views from clips of its own; those of pretrain are checked there."""
    return key == "visualize" and "inputs" in task.kinds and "pretrain" not in tasks


def _rates(config: dict[str, Any]) -> list[str]:
    """Whether layers that are trained at once, each with a rate of its own, stay apart."""
    if config.get("linear", {}).get("rates") is None or not config["trainer"]["clip_grad"]:
        return []
    return [
        f"trainer.clip_grad={config['trainer']['clip_grad']}: limits the gradients of all linear.rates together, which "
        "are trained at once; set it to 0, or linear.rates=null"
    ]


def _whose(config: dict[str, Any], task: str, key: str) -> str:
    """The key as the user would set it: run-wide unless the task differs."""
    return key if config[task][key] == config[key] else f"{task}.{key}"


def _data(config: dict[str, Any], tasks: dict[str, Task], known: Listings) -> list[str]:
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
            if split == "test" and task.needs_rendered and not listing.recipes:
                problems.append(
                    f"{key}.mask=exact: only rendered videos have exact masks, dataset={config['dataset']['name']} has "
                    "not; allowed: auto, fame, seed, grid, gauss"
                )
            if split == "train" and isinstance(task, Linear):
                problems += task.none_to_hold_out([video.label for video in listing.videos])
            batch = getattr(task, "batch_size", 1)
            if split == "train" and hasattr(task, "epochs") and len(listing.videos) < batch:
                problems.append(f"{key}.batch_size={batch}: the training split has only {len(listing.videos)} videos")
    return problems


def _listing(config: dict[str, Any], split: str, known: Listings) -> Listing:
    """Read once. Raises ConfigError where the data set does not have the split."""
    place = (repr(config["dataset"]), split)
    if place not in known:
        name = config["dataset"]["name"]
        if split not in ("train", "test") and not _listing(config, "test", known).recipes:
            raise ConfigError(f"dataset={name}: has no {split} split; it has train and test")
        known[place] = build.read_listing(config["dataset"], split)
    return known[place]


def _checkpoint(config: dict[str, Any], tasks: dict[str, Task], known: Listings) -> list[str]:
    """Whether each task finds what it starts from: the checkpoint, or what a task before it leaves."""
    given, left, told = config["checkpoint"], "nothing", None
    if given is not None:
        left = "classifier"
        if given != UNTRAINED:
            try:
                weights = build.read_weights(given)
            except ConfigError as error:
                return error.problems
            if weights.section not in (None, config["backbone"]):
                return [build.backbone_mismatch(given, weights.section, config["backbone"])]
            problems = _fits(weights, config)
            if problems:
                return [f"checkpoint={given}: {problem}" for problem in problems]
            if weights.classifier:
                told = weights
            else:
                left = "backbone"
        else:
            left = "backbone"
    problems = []
    for key, task in tasks.items():
        if task.starts_from != "nothing" and left == "nothing":
            problems.append(
                f"checkpoint: missing; task={key} starts from one: give a file or a run's folder, put pretrain before "
                f"it (task=[pretrain,{key}]), or checkpoint=none for an untrained network"
            )
        elif task.starts_from == "classifier" and left != "classifier":
            problems.append(f"checkpoint={given}: task={key} needs a classifier, which finetune and linear leave")
        elif (task.starts_from == "classifier" or task.reads_classifier) and told is not None:
            problems += _other_classes(config, key, task, told, known)
        if task.leaves != "nothing":
            left, told = task.leaves, None
    against = getattr(tasks.get("visualize"), "against", None)
    return problems + ([] if against in (None, UNTRAINED) else _against(against, config))


def _fits(weights: Weights, config: dict[str, Any]) -> list[str]:
    try:
        load_backbone(weights, BACKBONES.build(config["backbone"]))
    except ConfigError as error:
        return error.problems if weights.section else [build.misfit(weights, config["backbone"])]
    return []


def _against(given: str, config: dict[str, Any]) -> list[str]:
    """Whether a second network can be drawn beside the first."""
    try:
        weights = build.read_weights(given)
    except ConfigError as error:
        return [problem.replace("checkpoint=", "visualize.against=", 1) for problem in error.problems]
    if weights.section not in (None, config["backbone"]):
        ours, theirs = (" ".join(map(str, section.values())) for section in (config["backbone"], weights.section))
        return [f"visualize.against={given}: holds backbone {theirs}; give a file of the run's own backbone, {ours}"]
    return [f"visualize.against={given}: {problem}" for problem in _fits(weights, config)]


def _chain(tasks: dict[str, Task]) -> list[str]:
    """What some tasks need of those before them."""
    problems, names = [], list(tasks)
    if names == ["report"] and tasks["report"].runs is None:
        problems.append(
            "report.runs=null: means the run's own folder, in which task=report alone leaves nothing to report; give a "
            "folder that holds runs, or put tasks before it, as in task=[pretrain,linear,report]"
        )
    drawn = getattr(tasks.get("visualize"), "kinds", ())
    before = names[: names.index("visualize")] if "visualize" in names else []
    if drawn == ("curves",) and not any(hasattr(tasks[name], "epochs") for name in before):
        problems.append(
            "visualize.kinds=[curves]: needs a training task before it in the chain, as in task=[pretrain,visualize]"
        )
    return problems


WITHOUT_CLASSIFIER = {  # of tasks that can do something else
    "bias": "; bias.classifier=probe reads the features alone",
    "visualize": "; visualize.kinds without confusion needs none",
}


def _other_classes(config: dict[str, Any], key: str, task: Task, told: Weights, known: Listings) -> list[str]:
    """Whether the checkpoint's classifier tells the data set's classes, for tasks that start from one."""
    with torch.device("meta"):  # no memory, no weights
        width = BACKBONES.build(config["backbone"]).out_channels
    weight, bias = (told.classifier[name].shape for name in ("weight", "bias"))
    if len(weight) not in (2, 3) or weight[1] != width or bias != weight[:1]:
        return [
            f"checkpoint={config['checkpoint']}: its classifier, weight {list(weight)} and bias {list(bias)}, does not "
            f"fit the {width} channels of backbone={config['backbone']['name']}; task={key} needs one that does"
        ]
    for split in task.splits:
        try:
            classes = _listing(config, split, known).classes
        except ConfigError:
            continue  # said before
        try:
            if classes:
                build.class_rows(told, classes, config["dataset"]["name"])
        except ConfigError as error:
            return [
                f"checkpoint={config['checkpoint']}: {error}; task={key} needs the data set it was trained on, "
                "or a classifier for this one first, from task=linear or finetune" + WITHOUT_CLASSIFIER.get(key, "")
            ]
    return []
