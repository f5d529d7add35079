"""Configuration sections -> objects: the only place where data, methods, engine and evaluation meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vidssl.augment.photometric import AUGMENTS
from vidssl.backbones.blocks import BACKBONES
from vidssl.clips import ClipPlan
from vidssl.data import classes as names
from vidssl.data.cache import Form, folder_of, problems, with_copies
from vidssl.data.dataset import ClipDataset
from vidssl.data.loader import ClipLoader, DataOptions
from vidssl.data.manifest import Listing, Manifest, listed, read_manifest
from vidssl.data.sources import SOURCES
from vidssl.data.spatial import CROPS
from vidssl.data.synthetic import EXTRA_SPLITS, render_missing
from vidssl.engine import device as devices
from vidssl.engine import distributed
from vidssl.engine.checkpoint import LoadReport, Weights, load_backbone, load_weights
from vidssl.engine.log import Log
from vidssl.engine.loop import Session, Trainer, TrainerOptions
from vidssl.engine.optim import OPTIMIZERS, SCHEDULES
from vidssl.evaluation.classifier import Classifier, restored
from vidssl.evaluation.features import per_video
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS
from vidssl.registry import ConfigError, NonNegativeInt, PositiveInt, read_options, schema

UNTRAINED = "none"  # checkpoint=none: the network as it is initialized


@dataclass(frozen=True)
class Augmentation:
    """What stands between a decoded frame and the network: a crop on the CPU, color on the device."""

    crop: Annotated[dict, CROPS]
    color: Annotated[dict, AUGMENTS]


@dataclass(frozen=True)
class ClipOptions:
    """The clips a task works on."""

    clip_frames: PositiveInt
    frame_stride: PositiveInt
    crop_size: PositiveInt


@dataclass(frozen=True)
class TrainOptions:
    """What every training task says of its training."""

    epochs: NonNegativeInt
    batch_size: PositiveInt  # videos to one step of the optimizer, over all ranks
    max_steps: NonNegativeInt | None
    optimizer: Annotated[dict, OPTIMIZERS]
    schedule: Annotated[dict, SCHEDULES]


@dataclass
class Run:
    """One run: its configuration and the things that all of its tasks share."""

    config: dict[str, Any]  # resolved and checked
    output: Path
    log: Log
    device: torch.device
    checkpoint: str | None = None  # what the next task starts from
    speed: dict[str, float] = field(default_factory=dict)  # of the task that trained last, for run.json
    used: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> videos, listed: of the task that runs
    listings: dict[str, Listing] = field(default_factory=dict)
    manifests: dict[tuple, Manifest] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def precision(self) -> devices.Precision:
        """In which networks compute here."""
        return devices.resolve_precision(self.config["precision"], self.device)

    def state_file(self, task: str) -> Path:
        return self.output / state_name(self.config, task)


def state_name(config: dict[str, Any], task: str) -> str:
    """last.pt for the first training task of the chain, TASK.last.pt for those after it."""
    first = next((name for name, section in config.items() if _trains(section)), task)
    return "last.pt" if task == first else f"{task}.last.pt"


def _trains(section: Any) -> bool:
    return isinstance(section, dict) and "epochs" in section


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def backbone(run: Run) -> nn.Module:
    """The configured backbone with the weights of the run's checkpoint, if it has one."""
    network = untrained_backbone(run)
    if run.checkpoint not in (None, UNTRAINED):
        for line in load_checkpoint(run, network).lines():
            if run.checkpoint == run.config["checkpoint"]:  # not what a task of this run left
                run.log.say(f"checkpoint {run.checkpoint}: {line}")
    return network


def untrained_backbone(run: Run) -> nn.Module:
    """The same initial weights for the same seed, whatever is built afterwards."""
    torch.manual_seed(run.seed)
    return BACKBONES.build(run.config["backbone"])


def read_weights(checkpoint: str) -> Weights:
    """The weights in a file and the backbone they are for; a released file does not say, but one of ours fits."""
    weights = load_weights(checkpoint)
    if weights.section is not None:
        return weights
    sizes = {name: value.shape for name, value in weights.backbone.items()}
    for name in BACKBONES.names():
        if not schema(BACKBONES.get(name)):
            with torch.device("meta"):  # no memory, no weights
                network = BACKBONES.build({"name": name})
            if sizes == {key: value.shape for key, value in network.state_dict().items()}:
                return replace(weights, section={"name": name})
    return weights


def load_checkpoint(run: Run, network: nn.Module) -> LoadReport:
    weights = read_weights(run.checkpoint)
    if weights.section not in (None, run.config["backbone"]):
        raise ConfigError(backbone_mismatch(run.checkpoint, weights.section, run.config["backbone"]))
    return load_backbone(weights, network)


def backbone_mismatch(checkpoint: str, found: dict, wanted: dict) -> str:
    options = "".join(f" backbone.{key}={value}" for key, value in found.items() if key != "name")
    return (
        f"checkpoint={checkpoint}: holds another backbone than {wanted['name']}; add backbone={found['name']}{options}"
    )


def misfits(weights: Weights, section: dict) -> list[str]:
    """Reasons why weights do not fit the backbone of a configuration section; empty if they do."""
    try:
        load_backbone(weights, BACKBONES.build(section))
    except ConfigError as error:
        return error.problems if weights.section else [misfit(weights, section)]
    return []


def misfit(weights: Weights, wanted: dict) -> str:
    """Why weights of an unknown backbone do not fit `wanted`, and which backbones are in them or nearest to them."""
    sizes = {name: value.shape for name, value in weights.backbone.items()}
    networks, alike, inside = {}, {}, []
    for section in [wanted, *({"name": name} for name in BACKBONES.names() if not schema(BACKBONES.get(name)))]:
        with torch.device("meta"):
            network = networks[section["name"]] = BACKBONES.build(section)
        own = {name: value.shape for name, value in network.state_dict().items()}
        alike[section["name"]] = len(sizes.items() & own.items())
        inside += [f"{prefix} (backbone={section['name']})" for prefix in _prefixes(own, sizes)]
    nearest = max(alike, key=lambda name: alike[name])  # the first of equals
    if inside:
        return (
            f"has a whole network under {', '.join(inside)} beside other parts; write one with torch.save to a file of "
            "its own, names without that prefix"
        )
    if not alike[nearest]:
        shown = ", ".join(f"{name} {list(size)}" for name, size in list(sizes.items())[:3])
        more = ", ..." if len(sizes) > 3 else ""
        return f"none of its {len(sizes)} tensors has name and size of one in any of {', '.join(alike)}: {shown}{more}"
    try:
        told = "; ".join(load_backbone(weights, networks[nearest]).lines())
    except ConfigError as error:
        told = str(error).removeprefix("does not fit the backbone: ")
    equals = [name for name in alike if alike[name] == alike[nearest] and name != nearest]
    others = f" with {', '.join(equals)}" if equals else ""
    return f"does not fit backbone={nearest}{'' if nearest == wanted['name'] else f', the nearest{others}'}: {told}"


def _prefixes(own: dict[str, torch.Size], sizes: dict[str, torch.Size]) -> list[str]:
    """In front of which names all of a network's own stand among others."""
    first = "." + next(iter(own))
    found = [name.removesuffix(first) + "." for name in sizes if name.endswith(first)]
    return [prefix for prefix in found if all(sizes.get(prefix + name) == size for name, size in own.items())]


def classifier(run: Run, network: nn.Module, classes: Sequence[str] | None = None) -> Classifier | None:
    """The last layer of the run's checkpoint behind its backbone, in evaluation mode, if it has one.

    classes: what the data set calls its classes, in whose order the answers come; None: all, as the file has them. The
    layer is put where the network is.
    """
    weights = None if run.checkpoint in (None, UNTRAINED) else load_weights(run.checkpoint)
    if weights is None or not weights.classifier:
        return None
    layer = weights.classifier
    if classes is not None:
        rows, remark = class_rows(weights, classes, run.config["dataset"]["name"])
        if remark:
            run.log.say(f"checkpoint {run.checkpoint}: {remark}")
        layer = {name: value[rows] for name, value in layer.items()}
    place = next(network.parameters()).device
    return restored(network, nn.Identity(), layer, unit=weights.unit).to(place).eval()


def class_rows(weights: Weights, classes: Sequence[str], dataset: str) -> tuple[list[int], str | None]:
    """Which row of the classifier tells each of a data set's classes, and what a user should know of that.

    Where names are not known on both sides, their number decides. Raises ConfigError if the classifier does not tell
    all of them.
    """
    told, known = len(weights.classifier["bias"]), weights.classes
    if not known or names.are_numbers(known) or names.are_numbers(classes):
        if told != len(classes):
            raise ConfigError(f"its classifier tells {told} classes, dataset={dataset} has {len(classes)}")
        if not known or names.are_numbers(known) != names.are_numbers(classes):
            whose = "the classifier's" if not known or names.are_numbers(known) else f"dataset={dataset}'s"
            return list(range(told)), f"{whose} classes have no names, so that classes are compared by number alone"
        return names.places(classes, known), None
    foreign = names.lacking(classes, known)
    if foreign:
        raise ConfigError(
            f"its classifier tells {told} other classes ({_some(known)}), not {len(foreign)} of the {len(classes)} of "
            f"dataset={dataset} ({_some(foreign)})"
        )
    rows, remark = names.places(classes, known), None
    if len(rows) < told:
        remark = f"its classifier tells {told} classes; the {len(rows)} of dataset={dataset} are taken by name"
    elif rows != list(range(told)):
        remark = f"its classifier has the classes in another order; they are put in that of dataset={dataset}"
    return rows, remark


def _some(those: Sequence[str]) -> str:
    return ", ".join(those[:3]) + (", ..." if len(those) > 3 else "")


def method(run: Run, augmentation: Augmentation) -> Learner:
    return METHODS.build(run.config["method"], backbone(run), color(run, augmentation))


def color(run: Run, augmentation: Augmentation) -> nn.Module:
    """What turns clips float32 [B, 3, T, S, S] in [0, 1] into the network's input."""
    return AUGMENTS.build(augmentation.color).to(run.device)


# ---------------------------------------------------------------------------------------------------------------------
# Data


def data_options(run: Run) -> DataOptions:
    return DataOptions(**read_options(DataOptions, run.config["data"]))


def listing(run: Run, split: str) -> Listing:
    """The videos of a split and their labels, as the data set's files say."""
    if split not in run.listings:
        run.listings[split] = read_listing(run.config["dataset"], split)
    return run.listings[split]


def read_listing(section: dict, split: str) -> Listing:
    return SOURCES.build(section, split)


def has_split(run: Run, split: str) -> bool:
    """Whether the data set knows this extra split, as synthetic ones know test_swap."""
    return bool(listing(run, "test").recipes) and split in EXTRA_SPLITS


def manifest(run: Run, split: str, window: int, *, training: bool) -> Manifest:
    """The split's videos, scanned if need be. Rank 0 scans, the others read what it wrote."""
    options = data_options(run)
    drop = tuple(options.drop) + (("short",) if training and options.short_video == "skip" else ())
    key = (split, window, drop)
    if key not in run.manifests:
        files = listing(run, split)
        processes = options.processes or distributed.processors()
        for rank in range(distributed.world()):
            if rank == distributed.rank():
                run.manifests[key] = _scanned(run, files, window, drop, options, processes)
            if rank == 0:
                distributed.barrier()
        if not len(run.manifests[key]):
            raise ConfigError(
                f"dataset.root={files.root}: no video of the {split} split can be used; {_flaws(run.manifests[key])}"
            )
    return run.manifests[key]


def _flaws(videos: Manifest) -> str:
    return "; ".join(f"{len(found)} {flaw}" for flaw, found in videos.flaws.items() if found)


def _scanned(
    run: Run, files: Listing, window: int, drop: tuple[str, ...], options: DataOptions, processes: int
) -> Manifest:
    name = run.config["dataset"]["name"]
    render_missing(
        files, processes=processes, progress=lambda rows, total: run.log.track(rows, total, f"render {name}")
    )
    found = read_manifest(
        files, window=window, drop=drop, cache=options.index_folder, processes=processes,
        progress=lambda rows, total: run.log.track(rows, total, f"scan {name}"),
    )  # fmt: skip
    if options.cache is None or any(recipe.is_mask for recipe in files.recipes):
        return found
    folder = cache_folder(files, options)
    copied = with_copies(
        found, Form(options.cache, options.cache_short), folder, processes=processes,
        progress=lambda rows, total: run.log.track(rows, total, f"copy {name}"),
    )  # fmt: skip
    for line in problems(found, folder):
        run.log.say(f"no copy, the original is read: {line}")
    return copied


def cache_folder(files: Listing, options: DataOptions) -> Path:
    """Where the videos' small copies are, of the form that data.cache and data.cache_short ask for."""
    return folder_of(files.root, Form(options.cache, options.cache_short), options.index_folder, options.cache_folder)


def training_loader(
    run: Run, task: str, plan: ClipPlan, crop: dict, clip: ClipOptions, batch_size: int, *, split: str = "train"
) -> ClipLoader:
    """Shuffled, whole batches only. batch_size: over all ranks and accumulated parts."""
    accumulate = run.config["trainer"]["accumulate"]
    videos = manifest(run, split, clip.clip_frames * clip.frame_stride, training=True)
    note_used(run, split, len(videos))
    if len(videos) < batch_size:
        raise ConfigError(
            f"{task}.batch_size={batch_size}: only {len(videos)} videos of the {split} split can be used "
            f"({_flaws(videos)}), so that it must be {len(videos)} or less"
        )
    size = batch_size // (distributed.world() * accumulate)
    return _loader(run, videos, plan, crop, clip, size, training=True)


def note_used(run: Run, split: str, count: int) -> None:
    """For the record: the running task's metrics are of `count` of the split's listed videos."""
    run.used[split] = {"videos": count, "listed": listed(listing(run, split))}


def evaluation_loader(
    run: Run,
    clips: int,
    crop: dict,
    clip: ClipOptions,
    batch_size: int | Sequence[Sequence[int]],
    *,
    split: str,
    training: bool = False,
) -> ClipLoader:
    """Every video once, with evenly spread clips.

    batch_size: videos, on each rank; or the manifest's places that stand in each batch, of all ranks, who take turns.
    training: only the videos that training uses, without short ones where data.short_video says so.
    """
    videos = manifest(run, split, clip.clip_frames * clip.frame_stride, training=training)
    return _loader(run, videos, ClipPlan.uniform(clips), crop, clip, batch_size, training=False)


def _loader(
    run: Run,
    videos: Manifest,
    plan: ClipPlan,
    crop: dict,
    clip: ClipOptions,
    size: int | Sequence[Sequence[int]],
    *,
    training: bool,
) -> ClipLoader:
    options = data_options(run)
    return ClipLoader(
        dataset(run, videos, plan, crop, clip, training=training),
        size,
        training=training,
        workers=options.workers,
        prefetch=options.prefetch,
        pin=run.device.type == "cuda",
        most_damaged=options.most_damaged,
        report=run.log.say,
        rank=distributed.rank(),
        world=distributed.world(),
    )


def dataset(
    run: Run, videos: Manifest, plan: ClipPlan, crop: dict, clip: ClipOptions, *, training: bool
) -> ClipDataset:
    """The videos' clips, one by one. training: another video stands in for one that cannot be read."""
    return ClipDataset(
        videos, plan, CROPS.build(crop), clip.clip_frames, clip.frame_stride, clip.crop_size, run.seed,
        rotate=data_options(run).rotate, replace=training,
    )  # fmt: skip


def autocast(run: Run) -> torch.autocast:
    """In which networks answer as the run's precision says."""
    half = devices.HALF.get(run.precision)
    return torch.autocast(run.device.type, half, enabled=half is not None)


def features(
    run: Run,
    network: Callable[[Tensor], Tensor],
    clip: ClipOptions,
    clips: int,
    augmentation: Augmentation,
    batch_size: int,
    split: str,
    *,
    average: bool = True,
    training: bool = False,
) -> dict[str, Tensor]:
    """The network's answers to each video's evenly spread clips, averaged: value [N, C], label, index int64 [N].

    average=False: value [N, V, C], each clip's own. training: only of videos that training uses.
    """
    loader = evaluation_loader(run, clips, augmentation.crop, clip, batch_size, split=split, training=training)
    normalize = color(run, augmentation)

    def answer(batch: Tensor) -> Tensor:
        return network(normalize(batch.float().div(255)))

    with autocast(run):
        batches = run.log.track(loader.epoch(0), len(loader), f"features of {split}")
        found = per_video(answer, batches, run.device, average=average)
    note_used(run, split, len(found["index"]))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Training


def trainer(
    run: Run,
    task: str,
    learner: Learner,
    options: TrainOptions,
    *,
    file: Path | None,
    groups: list[dict[str, Any]] | None = None,
    classes: Sequence[str] = (),
) -> Trainer:
    """groups: parameters with learning rates of their own, as torch's optimizers take them; None: all with one.

    classes: names of what the learner tells apart, for its states.
    """
    if run.config["compile"]:
        mode = "reduce-overhead" if run.config["compile"] == "graphs" else None
        for module in learner.modules():
            if type(module) is type(learner.backbone):  # the key encoder's, too
                module.compile(mode=mode)
    learner.to(run.device)  # where optimizers work faster, as they see then
    parameters = groups or [parameter for parameter in learner.parameters() if parameter.requires_grad]
    session = Session(task, run.log, run.config, run.seed, run.device, run.precision, file, classes)
    return Trainer(
        learner,
        OPTIMIZERS.build(options.optimizer, parameters),
        SCHEDULES.build(options.schedule),
        session,
        TrainerOptions(**read_options(TrainerOptions, run.config["trainer"])),
        epochs=options.epochs,
        max_steps=options.max_steps,
    )
