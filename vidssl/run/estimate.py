"""What a run would do, take and cost, for check_only: nothing of it is done.

Networks are built and run on the meta device, where tensors have shapes but no memory: seconds for a plan of any size.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vidssl import build
from vidssl.backbones.blocks import BACKBONES
from vidssl.clips import Batch
from vidssl.data.cache import not_made
from vidssl.data.loader import DataOptions
from vidssl.data.manifest import Listing, omissions
from vidssl.engine.disk import human
from vidssl.engine.optim import OPTIMIZERS
from vidssl.evaluation.bias import CHANGES
from vidssl.evaluation.classifier import Classifier
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS, MomentumEncoder, Queue
from vidssl.ranks.submit import LAUNCHERS
from vidssl.registry import read_options
from vidssl.run.check import task_names
from vidssl.tasks import TASKS, Task
from vidssl.tasks.bias import Bias
from vidssl.tasks.classify import Finetune, Linear
from vidssl.tasks.export import Export
from vidssl.tasks.extract import Extract
from vidssl.tasks.pretrain import Pretrain
from vidssl.tasks.report import Report
from vidssl.tasks.retrieve import Retrieve
from vidssl.tasks.visualize import Visualize

# Peak TFLOP/s without sparsity, from NVIDIA's data sheets for the fastest form of each (SXM): V100 (2020), A100 (2022),
# H100 and H200 (2024; the sheets' figures are with sparsity, twice these), and from its white papers on GA102 (2020;
# RTX 3090) and on the Ada architecture (2022; RTX 4090), there those with float32 sums. fp32 is TF32, in which PyTorch
# computes float32 convolutions unless torch.backends.cudnn.allow_tf32 is false; V100 has neither TF32 nor bfloat16.
PEAK = {
    "V100": {"fp32": 15.7, "fp16": 125.0},
    "A100": {"fp32": 156.0, "bf16": 312.0, "fp16": 312.0},
    "H100": {"fp32": 494.5, "bf16": 989.5, "fp16": 989.5},
    "H200": {"fp32": 494.5, "bf16": 989.5, "fp16": 989.5},
    "RTX 3090": {"fp32": 35.6, "bf16": 71.0, "fp16": 71.0},
    "RTX 4090": {"fp32": 82.6, "bf16": 165.2, "fp16": 165.2},
}
ELSEWHERE = ("A100", "H100")  # told where no GPU is visible
ASSUMED_SHARE = 0.2  # of the peak
# Bytes of a file besides its values: torch.save's for a tensor, for what else a state says, safetensors' for a tensor
STATE_TENSOR, STATE_REST, WEIGHTS_TENSOR = 275, 5000, 80
SCORES_HEADER = 200  # of safetensors with three tensors

Trains = Pretrain | Finetune | Linear


def plan(config: dict[str, Any], output: Path) -> list[str]:
    """Lines for people. The configuration is sound."""
    data = Data(config["dataset"])
    chosen = " ".join(f"{key}={config[key]['name']}" for key in ("method", "backbone", "dataset"))
    head = f"The configuration is sound: {chosen}, seed {config['seed']}, {pluralize(ranks(config), 'rank')}"
    takes = parts(config, data)
    told = [line for part in takes for line in part.lines]
    told += data.omissions() + data.to_render() + data.to_copy(DataOptions(**read_options(DataOptions, config["data"])))
    told += _hours(config, [part.flops for part in takes])
    told += _disk(output, {name: size for part in takes for name, size in part.files.items()}, config)
    told += LAUNCHERS.build(config["launcher"]).plan(config)
    return [head, *(f"  {line}" for line in told)]


def ranks(config: dict[str, Any]) -> int:
    return config["devices"] * config["nodes"]


@dataclass
class Part:
    """What one task of the chain takes."""

    lines: list[str]
    flops: int | None = 0  # of all ranks; None: not known
    files: dict[str, int] = field(default_factory=dict)  # large ones that it leaves: name -> bytes


class Data:
    """The data set's listings, read once. Broken and short videos, which a scan will find, are still among them."""

    def __init__(self, section: dict[str, Any]):
        self.section, self.listings = section, {}

    def listing(self, split: str) -> Listing:
        if split not in self.listings:
            self.listings[split] = build.read_listing(self.section, split)
        return self.listings[split]

    def count(self, splits: Iterable[str]) -> int:
        return sum(len(self.listing(split).videos) for split in splits)

    def scored_by(self, task: Task) -> list[str]:
        """The test split, and those of counterfactual videos where the data set has them."""
        if "test" not in task.splits:
            return []
        more = ("test_swap", "test_cf") if isinstance(task, Retrieve) else ("test_swap",)
        return ["test", *(more if self.listing("test").recipes else ())]

    def omissions(self) -> list[str]:
        """Listed videos that are not on disk, a line for each split."""
        lines = {split: omissions(listing) for split, listing in self.listings.items()}
        return [f"{split} split: {line}" for split, line in lines.items() if line]

    def to_render(self) -> list[str]:
        missing = [
            listing.root / recipe.name
            for listing in self.listings.values()
            for recipe in listing.recipes
            if not (listing.root / recipe.name).exists()
        ]
        return [f"first renders {len(missing):,} videos into {missing[0].parent}"] if missing else []

    def to_copy(self, options: DataOptions) -> list[str]:
        """Small copies that are still to be made; how large they get only the videos tell."""
        if options.cache is None:
            return []
        paths: dict[Path, set[str]] = {}
        for listing in self.listings.values():
            if not any(recipe.is_mask for recipe in listing.recipes):
                folder = build.cache_folder(listing, options)
                paths.setdefault(folder, set()).update(video.path for video in listing.videos)
        counts = {folder: not_made(videos, folder) for folder, videos in paths.items()}
        return [f"first makes {count:,} small copies in {folder}" for folder, count in counts.items() if count]


def parts(config: dict[str, Any], data: Data) -> list[Part]:
    """Of every task, in their order."""
    return [_part_with_scores(config, name, data) for name in task_names(config)]


def _part_with_scores(config: dict[str, Any], name: str, data: Data) -> Part:
    part = _part(config, name, data)
    if name in ("finetune", "linear", "knn", "test"):
        listing = data.listing("test")
        of_video = 4 * len(listing.classes) + 16
        part.files[f"{name}-scores.safetensors"] = len(listing.videos) * of_video + SCORES_HEADER
    return part


def _part(config: dict[str, Any], name: str, data: Data) -> Part:
    task = TASKS.get(name)(**read_options(TASKS.get(name), config[name]))
    match task:
        case Linear(features="cached"):
            return _training_on_features(config, name, task, data)
        case Pretrain() | Finetune() | Linear():
            return _training(config, name, task, data)
        case Export():
            size = weights_bytes(_backbone(config))
            return Part([name], files={"backbone.safetensors": size, "backbone.pt2": size})
        case Extract():
            return _extracting(config, name, task, data)
        case Report():
            folder = task.runs if task.runs and not task.writes_into_output(config) else "the folder of this run"
            return Part([f"{name}: report.md, report.csv and report.html in {folder}"])
        case Bias():
            return _changed(config, task, data)
        case Visualize():
            return _drawing(config, name, task, data)
    if not isinstance(getattr(task, "clips", None), int):
        return Part([name])
    splits = [*(split for split in task.splits if split != "test"), *data.scored_by(task)]
    line, flops = _scoring(config, task, data, splits)
    return Part([f"{name}: {line}"], flops)


def _extracting(config: dict[str, Any], name: str, task: Extract, data: Data) -> Part:
    line, flops = _scoring(config, task, data, list(task.splits))
    width = _backbone(config).out_channels * (task.clips if task.per == "clip" else 1)
    files = {}
    for split in task.splits:
        paths = [len(video.path) + 6 for video in data.listing(split).videos]  # in quotes, which are escaped
        files[f"features-{split}.safetensors"] = sum(paths) + len(paths) * (4 * width + 16)
    return Part([f"{name}: {line}"], flops, files)


def _drawing(config: dict[str, Any], name: str, task: Visualize, data: Data) -> Part:
    told = f"{name}: {', '.join(task.kinds)}, as pictures/{name}-*"
    if not task.extracts:
        return Part([told])
    line, flops = _scoring(config, task, data, list(task.extracts))
    return Part([told, f"  features of {line}"], flops)


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Steps(NamedTuple):
    """How far a training goes."""

    per_epoch: int
    count: int

    @classmethod
    def of(cls, task: Trains, videos: int, batch: int) -> Steps:
        count = videos // batch * task.epochs
        return cls(videos // batch, count if task.max_steps is None else min(count, task.max_steps))

    @property
    def epochs(self) -> int:
        """That are completed."""
        return self.count // max(1, self.per_epoch)

    def validations(self, task: Trains) -> int:
        every = getattr(task, "validate_every", 0)
        return self.epochs // every if every else 0

    def scorings(self, task: Trains) -> int:
        """Of the test split: validations, and one at the end unless a validation was there."""
        validated = self.validations(task)
        is_last = validated > 0 and self.count == validated * task.validate_every * self.per_epoch
        return validated if is_last else validated + 1

    def has_best(self, task: Trains) -> bool:
        return self.validations(task) > 0 if getattr(task, "validate_every", 0) else self.epochs > 0


def _training(config: dict[str, Any], name: str, task: Trains, data: Data) -> Part:
    videos, accumulate = data.count(["train"]), config["trainer"]["accumulate"]
    steps, learner = Steps.of(task, videos, task.batch_size), trained(config, task, data)
    on_rank = pluralize(task.batch_size // accumulate // ranks(config), "video")
    seen = f"{pluralize(steps.count * task.batch_size, 'video')} x {_clips(task, len(learner.plan.views))}"
    batch = f"a batch: {pluralize(ranks(config), 'rank')} x {pluralize(accumulate, 'part')} x {on_rank}"
    part = Part([f"{name}: {_told(task, videos, steps)}", f"  {seen}; {batch}"])
    line, part.flops = _stepping(config, task, learner, steps)
    part.lines.append(f"  {line}")
    if not isinstance(task, Pretrain):
        line, flops = _scoring(config, task, data, data.scored_by(task), steps.scorings(task))
        part.lines.append(f"  {line}")
        part.flops = None if part.flops is None else part.flops + flops
    optimizer = optimizer_state(learner, task.optimizer)
    part.lines += _memory(learner, optimizer)
    part.files = _files(config, name, state_bytes(learner, optimizer), steps, steps.has_best(task))
    if isinstance(task, Pretrain):
        part.files["backbone.safetensors"] = weights_bytes(learner.backbone)
    return part


def _stepping(config: dict[str, Any], task: Trains, learner: Learner, steps: Steps) -> tuple[str, int | None]:
    """Operations of all steps; None if they cannot be counted."""
    accumulate = config["trainer"]["accumulate"]
    try:
        forward, backward = step_flops(learner, task.batch_size // accumulate, task.clip_frames, task.crop_size)
    except (RuntimeError, TypeError) as error:  # of a method that has to see values
        return f"operations of a step are not known: {str(error).splitlines()[0]}", None
    batches = steps.count * accumulate
    filling = min(batches, fill_steps(config["method"])) if isinstance(task, Pretrain) else 0
    flops = batches * forward + (batches - filling) * backward
    return f"{operations(accumulate * (forward + backward))} a step", flops


def _training_on_features(config: dict[str, Any], name: str, task: Linear, data: Data) -> Part:
    """Of one layer, whose steps are next to nothing. Each rank takes them all."""
    videos = data.count(["train"])
    steps = Steps.of(task, videos, task.batch_size)
    line, flops = _scoring(config, task, data, ["train", *data.scored_by(task)])
    learner = trained(config, task, data)
    memory = _memory(learner, optimizer_state(learner, task.optimizer))
    files = _files(config, name, state_bytes(learner, Sizes(0, 0)), None, has_best=False)
    told = [f"{name}: {_told(task, videos, steps)}", f"  on features: {line}"]
    if task.rates is not None:
        tried = ", ".join(f"{rate:g}" for rate in sorted(task.rates))
        told.append(f"  rates tried at once, {task.held_out:.0%} of the videos held out: {tried}; then the best on all")
    return Part([*told, *memory], flops, files)


def _told(task: Trains, videos: int, steps: Steps) -> str:
    return f"{videos} videos, batches of {task.batch_size}, {task.epochs} epochs, {steps.count} steps"


def _clips(task: Any, count: int) -> str:
    return f"{pluralize(count, 'clip')} of {task.clip_frames} x {task.crop_size} x {task.crop_size}"


def trained(config: dict[str, Any], task: Trains, data: Data) -> Learner:
    """What the task trains, on the meta device and without color, which changes no shape."""
    backbone = _backbone(config)
    with torch.device("meta"):
        if isinstance(task, Pretrain):
            return METHODS.build(trained_at_once(config["method"]), backbone, nn.Identity())
        classes, frozen = len(data.listing("train").classes), isinstance(task, Linear)
        return Classifier(backbone, nn.Identity(), classes, dropout=0.0, frozen=frozen, unit=False)


def trained_at_once(method: dict[str, Any]) -> dict[str, Any]:
    """The method without the batches at its start that only fill a queue."""
    return {**method, "contrast": {**method["contrast"], "fill_steps": 0}} if fill_steps(method) else method


def fill_steps(method: dict[str, Any]) -> int:
    return (method.get("contrast") or {}).get("fill_steps", 0)


def _backbone(config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return BACKBONES.build(config["backbone"])


# ---------------------------------------------------------------------------------------------------------------------
# Floating-point operations of convolutions and matrix products: a multiplication and an addition are two


def step_flops(learner: Learner, videos: int, frames: int, size: int) -> tuple[int, int]:
    """Forward, with the making of views, and backward. videos: of all ranks, whose work one process would do alone."""
    count = len(learner.plan.views)
    with torch.device("meta"):
        clips = torch.empty(videos, count, 3, frames, size, size, dtype=torch.uint8)
        number = torch.zeros(videos, dtype=torch.int64)
        batch = Batch(clips, torch.empty(videos, count, 4), number, number)
    learner.train()
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            views = learner.views(batch)
        output = learner(views)
        forward = counter.get_total_flops()
        if output.update:
            output.loss.backward()
    return forward, counter.get_total_flops() - forward


def clip_flops(backbone: nn.Module, frames: int, size: int) -> int:
    """Forward, of one clip."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone.eval()(torch.empty(1, 3, frames, size, size, device="meta"))
    return counter.get_total_flops()


def _scoring(config: dict[str, Any], task: Any, data: Data, splits: list[str], times: int = 1) -> tuple[str, int]:
    """Answers to evenly spread clips. Layers behind the backbone are next to nothing."""
    videos = data.count(splits) * times
    flops = videos * task.clips * clip_flops(_backbone(config), task.clip_frames, task.crop_size)
    seen = f"{pluralize(videos, 'video')} x {_clips(task, task.clips)}"
    return f"{' + '.join(splits)}{f', {times} times' if times > 1 else ''}: {seen}, {operations(flops)}", flops


def _changed(config: dict[str, Any], task: Bias, data: Data) -> Part:
    """Test videos once for each change, rendered ones where the data set has them."""
    line, flops = _scoring(config, task, data, ["test"], len(CHANGES))
    part = Part([f"bias: {line}"], flops)
    for splits in ([["test_swap", "test_cf"]] if data.listing("test").recipes else []) + [["train"]]:
        line, flops = _scoring(config, task, data, splits)
        part.flops += flops
        part.lines.append(f"  {line}" + (", if the checkpoint has no classifier" if splits == ["train"] else ""))
    if task.needs_rendered or data.listing("test").recipes:
        data.listing("test_mask")  # is rendered, too
    return part


# ---------------------------------------------------------------------------------------------------------------------
# Memory and files


class Sizes(NamedTuple):
    tensors: int
    bytes: int


def sizes(tensors: Iterable[Tensor]) -> Sizes:
    each = [tensor.nbytes for tensor in tensors]
    return Sizes(len(each), sum(each))


def optimizer_state(learner: Learner, section: dict[str, Any]) -> Sizes:
    """What the optimizer keeps for each parameter: seen after a step on the meta device."""
    parameters = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS.build(section, parameters)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sizes(value for value in kept if isinstance(value, Tensor))


def state_bytes(learner: Learner, optimizer: Sizes) -> int:
    """Of a file that the trainer saves."""
    weights = sizes(learner.state_dict().values())
    return weights.bytes + optimizer.bytes + (weights.tensors + optimizer.tensors) * STATE_TENSOR + STATE_REST


def weights_bytes(backbone: nn.Module) -> int:
    """Of backbone.safetensors."""
    weights = sizes(backbone.state_dict().values())
    return weights.bytes + weights.tensors * WEIGHTS_TENSOR


def _memory(learner: Learner, optimizer: Sizes) -> list[str]:
    """Of each rank."""
    every = list(learner.parameters())
    gradients = [parameter for parameter in every if parameter.requires_grad]
    twins = [p for module in learner.modules() if isinstance(module, MomentumEncoder) for p in module.parameters()]
    queues = [buffer for module in learner.modules() if isinstance(module, Queue) for buffer in module.buffers()]
    numbers = {"backbone": learner.backbone.parameters(), "in all": every, "trained": gradients, "twin": twins}
    taken = {
        "weights": sizes([*every, *learner.buffers()]).bytes - sizes(queues).bytes,
        "gradients": sizes(gradients).bytes,
        "optimizer": optimizer.bytes,
        "queue": sizes(queues).bytes,
    }
    counted = ", ".join(f"{name} {sum(p.numel() for p in part):,}" for name, part in numbers.items() if part)
    told = ", ".join(f"{name} {human(size)}" for name, size in taken.items() if size)
    return [f"  parameters: {counted}", f"  memory of a rank: {told}; activations are not counted"]


def _files(config: dict[str, Any], name: str, size: int, steps: Steps | None, has_best: bool) -> dict[str, int]:
    last, every = build.state_name(config, name), config["trainer"]["keep_every"]
    kept = steps.epochs // every if steps is not None and every else 0
    found = {last: size} | ({last.replace("last", "best"): size} if has_best else {})
    return found | ({f"{kept} x {last.replace('last', 'epoch-N')}": kept * size} if kept else {})


def _disk(output: Path, files: dict[str, int], config: dict[str, Any]) -> list[str]:
    """What the run leaves, and whether there is room: a file is written beside the old one before it replaces it."""
    folder = next(path for path in (output, *output.parents) if path.exists())
    free, total = shutil.disk_usage(folder).free, sum(files.values())
    logs = ["config.yaml", "run.json", "result.json", "metrics.jsonl", "train.log", "tensorboard/"]
    shows = "pretrain" in config and config["trainer"]["pictures_every"]
    logs += ["pictures/"] if shows or "visualize" in config else []
    told = output.relative_to(Path.cwd()) if output.is_relative_to(Path.cwd()) else output
    lines = [f"leaves {human(total)} and logs in {told}, where {human(free)} are free"]
    lines += [f"  {', '.join(f'{name} {human(size)}' for name, size in files.items())}"] if files else []
    lines.append(f"  {', '.join(logs)}")
    if free < 2 * total:
        lines.append(
            f"warning: {human(free)} free, but {human(2 * total)} wanted: files are written beside the old ones"
        )
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Hours


def _hours(config: dict[str, Any], flops: list[int | None]) -> list[str]:
    if None in flops or not sum(flops):
        return []
    total, precision = sum(flops), config["precision"]
    lines = [f"in all {operations(total)} of convolutions and matrix products, a multiply-add being two"]
    if config["accelerator"] == "cpu":
        return lines
    lines.append(
        f"estimate from these alone, at an assumed {ASSUMED_SHARE:.0%} of the peak for precision={precision} "
        "(task=bench measures); reading videos may take longer"
    )
    return lines + [f"  {gpu_hours(gpu, precision, total, ranks(config))}" for gpu in _gpus()]


def _gpus() -> tuple[str, ...]:
    return (torch.cuda.get_device_name(),) if torch.cuda.is_available() else ELSEWHERE


def gpu_hours(gpu: str, precision: str, flops: int, count: int) -> str:
    """One line. gpu: as PyTorch names it."""
    peaks = next((rates for name, rates in PEAK.items() if name in gpu), {})
    if precision == "auto":
        precision = "bf16" if "bf16" in peaks else "fp32"
    peak = peaks.get(precision)
    if peak is None:
        return f"{gpu}: its peak for {precision} is not known here"
    hours = flops / (ASSUMED_SHARE * peak * 1e12) / 3600
    told = f"{hours:,.2f}" if hours >= 0.01 else "less than 0.01"
    return f"{gpu}: {told} GPU-hours in {precision}, {_duration(hours / count)} on {pluralize(count, 'GPU')}"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return "less than a minute"
    return pluralize(round(60 * hours), "minute") if hours < 1 else f"{hours:.1f} hours"


def operations(flops: float) -> str:
    for unit in ("", "K", "M", "G", "T", "P", "E"):
        if flops < 999.5:
            return f"{flops:.3g} {unit}FLOP"
        flops /= 1000
    return f"{flops:.3g} ZFLOP"


def pluralize(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
