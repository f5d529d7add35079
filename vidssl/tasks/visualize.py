"""Pictures of a network: what it sees, where it looks, what it tells apart. Nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vidssl import build
from vidssl.build import Augmentation, ClipOptions, Run, TrainOptions
from vidssl.clips import Batch, ClipPlan
from vidssl.data.dataset import ClipDataset, collate
from vidssl.data.manifest import Manifest, single
from vidssl.data.synthetic import write_video
from vidssl.data.video import VideoError
from vidssl.engine.checkpoint import write_atomically
from vidssl.engine.text import printable
from vidssl.evaluation.activation import activation_map
from vidssl.evaluation.classifier import Classifier, average
from vidssl.evaluation.confusion import confusion, most_confused
from vidssl.evaluation.kernels import by_offset, temporal_kernels, variation
from vidssl.evaluation.metrics import nearest, unit
from vidssl.evaluation.tsne import LEAST, tsne
from vidssl.registry import ConfigError, FilePath, PositiveFloat, PositiveInt
from vidssl.report import confusion as heat_map
from vidssl.report import curves, kernels, strips
from vidssl.report.frames import enlarged, even, frames_of, side_of, stack, write_gif
from vidssl.report.runs import read_curves
from vidssl.report.scatter import scatter
from vidssl.report.strips import Row, Tile, overlay, strip
from vidssl.tasks import TASKS, Context, Task
from vidssl.tasks.costs import Cost, Costs

Kind = Literal["inputs", "activations", "tsne", "confusion", "kernels", "neighbors", "curves"]
FRAMES = 8  # of a clip on a sheet
COMPANY = 8  # videos of which a method makes its inputs, at least: some mix videos with one another
MISTAKES = 15  # listed beside a confusion matrix
MIDDLE = ClipPlan.uniform(3)  # of which the second is drawn
CAPTIONS = {  # of what methods show under these names
    "clip": "clip", "video": "clip", "foreground": "foreground mask", "swapped": "background swapped",
    "distracting": "static frame mixed in", "static": "static: one frame", "motion": "residual: frame differences",
}  # fmt: skip


class Undrawable(Exception):
    """Why there is no such picture of this run."""


@TASKS.register("visualize")
@dataclass(frozen=True)
class Visualize(ClipOptions, Task):
    """PNG files in pictures/, images in TensorBoard, and an animation of the activation maps.

    Kinds that cannot be drawn, such as a confusion matrix without a classifier, are named in the log; the task fails
    only if nothing can be drawn.
    """

    kinds: tuple[Kind, ...]
    split: Literal["test", "train"]
    videos: PositiveInt
    video: FilePath | None
    against: FilePath | None
    clips: PositiveInt
    augmentation: Augmentation
    batch_size: PositiveInt
    tsne_classes: PositiveInt
    perplexity: PositiveFloat
    queries: PositiveInt
    neighbors: PositiveInt
    animation: Literal["gif", "mp4", "none"]
    fps: PositiveInt

    without_classifier = "visualize.kinds without confusion needs none"

    @property
    def extracts(self) -> tuple[str, ...]:
        """Splits whose features are needed."""
        whole = {"tsne", "confusion", "neighbors"} & set(self.kinds)
        return ((self.split,) if whole else ()) + (
            ("train",) if whole & {"neighbors"} and self.split != "train" else ()
        )

    @property
    def splits(self) -> tuple[str, ...]:
        shows = "inputs" in self.kinds or ("activations" in self.kinds and self.video is None)
        return self.extracts or ((self.split,) if shows else ())

    @property
    def labelled(self) -> bool:
        return self.kinds == ("confusion",)

    @property
    def starts_from(self) -> Literal["nothing", "backbone", "classifier"]:
        if self.kinds == ("confusion",):
            return "classifier"
        return "nothing" if set(self.kinds) <= {"inputs", "curves"} else "backbone"

    @property
    def reads_classifier(self) -> bool:
        return "confusion" in self.kinds

    def estimate(self, name: str, costs: Costs) -> Cost:
        lines = [f"{name}: {', '.join(self.kinds)}, as pictures/{name}-*"]
        if not self.extracts:
            return Cost(lines)
        line, flops = costs.scoring(self, self.clips, self.extracts)
        return Cost([*lines, f"  features of {line}"], flops)

    def problems(self) -> list[str]:
        problems = []
        if "tsne" in self.kinds and find_spec("sklearn") is None:
            problems.append("visualize.kinds: tsne needs scikit-learn; pip install 'vidssl[pictures]' or leave it out")
        if not self.kinds:
            problems.append("visualize.kinds=[]: draws nothing; name one or more of inputs, activations, ...")
        if self.video is not None:
            try:
                single(Path(self.video))
            except VideoError as error:
                problems.append(f"visualize.video={self.video}: {str(error).removeprefix(f'{self.video}: ')}")
        return problems

    def conflicts(self, context: Context) -> list[str]:
        problems = []
        if "inputs" in self.kinds and "pretrain" not in context.tasks:  # else made from clips of pretrain, which checks
            problems += context.method_problems(self)
        if self.kinds == ("curves",) and not any(isinstance(t, TrainOptions) for t in context.before("visualize")):
            problems.append(
                "visualize.kinds=[curves]: needs a training task before it in the chain, as in "
                "task=[pretrain,visualize]"
            )
        return problems + self.against_problems(context.config["backbone"])

    def against_problems(self, section: dict[str, Any]) -> list[str]:
        """Problems of the second network, which is drawn beside the run's. section: the run's backbone."""
        if self.against in (None, build.UNTRAINED):
            return []
        key = f"visualize.against={self.against}"
        try:
            weights = build.read_weights(self.against)
        except ConfigError as error:
            return [problem.replace("checkpoint=", "visualize.against=", 1) for problem in error.problems]
        if weights.section not in (None, section):
            run, other = (" ".join(map(str, each.values())) for each in (section, weights.section))
            return [f"{key}: holds backbone {other}; give a file of the run's own backbone, {run}"]
        return [f"{key}: {problem}" for problem in build.misfits(weights, section)]

    def __call__(self, run: Run) -> dict[str, float]:
        album = Album(self, run)
        if not run.log.is_main:
            return {}
        count, reasons = 0, []
        for kind in self.kinds:
            try:
                for name, picture in getattr(album, kind)():
                    run.log.picture("visualize", name, 0, picture)
                    count += 1
            except Undrawable as reason:
                reasons.append(f"no {kind}: {reason}")
                run.log.say(f"visualize: {reasons[-1]}")
        if count == 0:
            raise ConfigError(f"visualize.kinds=[{','.join(self.kinds)}]: nothing can be drawn; {'; '.join(reasons)}")
        return {"pictures": count}


Pictures = Iterator[tuple[str, np.ndarray]]  # name, uint8 [H, W, 3]


class Album:
    """What there is to draw, made by all ranks together; then one method for each kind, for the first rank."""

    def __init__(self, options: Visualize, run: Run):
        self.options, self.run = options, run
        needed = options.starts_from != "nothing"
        self.networks = {self.name(run.checkpoint): build.backbone(run)} if needed else {}
        if options.against is not None and needed:
            other = build.backbone(replace(run, checkpoint=options.against))
            self.networks[self.name(options.against, other=True)] = other
        for network in self.networks.values():
            network.to(run.device).eval()
        window = options.clip_frames * options.frame_stride
        self.videos = {split: build.manifest(run, split, window, training=False) for split in options.splits}
        self.classifier, self.why_not = self.read_classifier()
        self.found = {split: self.extract(split) for split in options.extracts}

    def name(self, checkpoint: str | None, other: bool = False) -> str:
        """Of a network, in captions: its run's folder if its file is called as in every run."""
        if not other and self.options.against is None:
            return "activation"
        if checkpoint in (None, build.UNTRAINED):
            return "untrained, too" if other and "untrained" in self.networks else "untrained"
        path = Path(checkpoint)
        usual = path.is_dir() or path.name.endswith(("last.pt", "best.pt")) or path.name == "backbone.safetensors"
        name = (path.resolve() if path.is_dir() else path.resolve().parent).name if usual else path.stem
        return f"{name}, against" if other and name in self.networks else name

    @property
    def backbone(self) -> nn.Module:
        return next(iter(self.networks.values()))

    @property
    def classes(self) -> list[str]:
        return [printable(name) for name in self.videos[self.options.split].classes]

    # -- features

    def read_classifier(self) -> tuple[Classifier | None, str]:
        """The checkpoint's, or why none can be used."""
        if "confusion" not in self.options.kinds:
            return None, ""
        if not self.classes:
            return None, "the videos have no classes"
        try:
            classifier = build.classifier(self.run, self.backbone, self.classes)
        except ConfigError as error:
            return None, str(error)
        return classifier, "" if classifier else "the checkpoint has no classifier; linear and finetune leave one"

    def extract(self, split: str) -> dict[str, Tensor]:
        """feature [N, C], scores [N, classes], label, index int64 [N], in one pass."""
        options = self.options
        classifier = self.classifier if split == options.split else None

        def answer(clip: Tensor) -> Tensor:
            feature_map = self.backbone(clip)
            scores = [classifier.read(feature_map)] if classifier else []
            return torch.cat([average(feature_map, unit=True).float(), *scores], dim=1)

        found = build.features(
            self.run, answer, options, options.clips, options.augmentation, options.batch_size, split
        )
        width = self.backbone.out_channels
        return {**found, "feature": found["value"][:, :width], "scores": found["value"][:, width:]}

    # -- clips

    def dataset(self, videos: Manifest, plan: ClipPlan, augmentation: Augmentation, clip: ClipOptions) -> ClipDataset:
        return build.dataset(self.run, videos, plan, augmentation.crop, clip, training=False)

    def clips(self, plan: ClipPlan, augmentation: Augmentation, clip: ClipOptions, *, company: bool) -> Batch:
        """Of the given video, or of some of the split. company: others go with a single video, to mix it with."""
        items = []
        if self.options.video is not None:
            video = single(Path(self.options.video))
            items.append(self.dataset(video, plan, augmentation, clip)[0, 0])
            if not len(items[0].clips):
                raise ConfigError(f"visualize.video={self.options.video}: {items[0].failures[0][1]}")
        if self.options.video is None or company:
            videos = self.videos[self.options.split]
            dataset = self.dataset(videos, plan, augmentation, clip)
            labels = [video.label for video in videos.videos]
            chosen = spread(labels, self.options.videos)
            others = [number for number in range(len(labels)) if number not in chosen] if company else []
            items += [dataset[0, number] for number in (*chosen, *others[: max(0, COMPANY - len(chosen))])]
        batch, _ = collate(items)
        if batch is None:
            raise Undrawable("none of the videos can be read")
        return batch.to(self.run.device)

    def titles(self, batch: Batch) -> list[str]:
        """Of the videos that are shown."""
        if self.options.video is not None:
            return [Path(self.options.video).name]
        videos = self.videos[self.options.split]
        shown = [videos.videos[number] for number in batch.index.tolist()[: self.options.videos]]
        named = [(Path(video.path).stem, video.label) for video in shown]
        return [printable(f"{videos.classes[label]}: {name}" if label >= 0 else name) for name, label in named]

    # -- pictures

    def inputs(self) -> Pictures:
        """What the method shows of its work, and what its networks get."""
        augmentation, clip = pretraining(self.run.config, self.options)
        method = self.run.config["method"]
        if "allow_self" in method:  # a picture of a swapped background shows another one
            method = {**method, "allow_self": False}
        run = replace(self.run, checkpoint=None, config={**self.run.config, "method": method})
        learner = build.method(run, augmentation).to(self.run.device)
        batch = self.clips(learner.plan, augmentation, clip, company=True)
        shown = []
        torch.manual_seed(self.run.seed)
        for name, made in learner.pictures(batch).items():
            shown.append((CAPTIONS.get(name, name.replace("_", " ")), made))
        torch.manual_seed(self.run.seed)  # the same partners as before
        for name, view in learner.views(batch)._asdict().items():
            if isinstance(view, Tensor) and view.ndim == 5:
                shown.append((f"network input: {name.replace('_', ' ')}", learner.shown(view)))
        for number, title in enumerate(self.titles(batch)):
            rows = [Row(caption, frames_of(made[number], FRAMES)) for caption, made in shown]
            yield f"inputs-{number + 1}", strip(rows, title)

    @torch.no_grad()
    def activations(self) -> Pictures:
        """Frames, and the same under the activation map of each network."""
        batch = self.clips(MIDDLE, self.options.augmentation, self.options, company=False)
        clips = batch.clips[:, 1].float().div(255)
        normalize, side = build.color(self.run, self.options.augmentation), side_of(clips.shape[-1])
        frames = [enlarged(clip.transpose(0, 1)) for clip in clips]  # of each video, all
        size = (clips.shape[2], side, side)
        maps = {
            name: activation_map(network(normalize(clips)), size).cpu().numpy()
            for name, network in self.networks.items()
        }
        heated = {name: [overlay(*pair) for pair in zip(frames, heat, strict=True)] for name, heat in maps.items()}
        sheets, some = [], np.linspace(0, size[0] - 1, min(FRAMES, size[0])).astype(int)
        titles = self.titles(batch)
        for number, title in enumerate(titles):
            rows = [Row("frames", frames[number][some])]
            rows += [Row(name, each[number][some]) for name, each in heated.items()]
            sheets.append(strip(rows, title))
        yield "activations", stack(sheets)
        if self.options.animation != "none":
            self.animate([("frames", frames), *heated.items()], len(titles))

    def animate(self, rows: list[tuple[str, list[np.ndarray]]], videos: int) -> None:
        """A column for each video, a row for each network."""
        times = range(len(rows[0][1][0]))
        moving = [
            strip([Row(name, np.stack([v[time] for v in each[:videos]])) for name, each in rows]) for time in times
        ]
        file = self.run.output / "pictures" / f"visualize-activations.{self.options.animation}"
        file.parent.mkdir(exist_ok=True)
        write, shown = write_gif if self.options.animation == "gif" else write_video, even(np.stack(moving))
        write_atomically(file, lambda unfinished: write(unfinished, shown, self.options.fps))

    def tsne(self) -> Pictures:
        options, found = self.options, self.found[self.options.split]
        label, feature = found["label"], found["feature"]
        present = sorted(set(label.tolist()) - {-1})
        if present:
            kept = torch.tensor([present[place] for place in evenly(len(present), options.tsne_classes)])
            inside = torch.isin(label, kept)
            label, feature = label[inside], feature[inside]
        if len(feature) < LEAST:
            raise Undrawable(f"t-SNE of {len(feature)} videos says nothing; it needs {LEAST} or more")
        if not feature.isfinite().all():
            raise Undrawable("some features are not finite")
        places = tsne(feature, perplexity=options.perplexity, seed=self.run.seed)
        yield "tsne", scatter(places.numpy(), label.numpy(), self.classes)

    def confusion(self) -> Pictures:
        if self.classifier is None:
            raise Undrawable(self.why_not)
        found = self.found[self.options.split]
        shares = confusion(found["scores"], found["label"])
        yield "confusion", heat_map.confusion(shares.numpy(), self.classes, most_confused(shares, MISTAKES))

    def kernels(self) -> Pictures:
        layers = {name: temporal_kernels(network) for name, network in self.networks.items()}
        if not next(iter(layers.values())):
            raise Undrawable(f"backbone={self.run.config['backbone']['name']} has no kernels over time")
        yield (
            "kernels",
            kernels.kernels(
                {
                    name: {
                        layer: kernels.Layer(by_offset(weight).numpy(), variation(weight).numpy())
                        for layer, weight in found.items()
                    }
                    for name, found in layers.items()
                }
            ),
        )

    def neighbors(self) -> Pictures:
        """Centered features, as task=retrieve compares them."""
        options = self.options
        queries, gallery = self.found[options.split], self.found["train"]
        chosen = torch.tensor(spread(queries["label"].tolist(), options.queries))
        more = int(options.split == "train")  # a training video is nearest to itself
        near = nearest(queries["feature"], gallery["feature"], options.neighbors + more, centered=True)[chosen, more:]
        alike = unit(queries["feature"], centered=True)[chosen] @ unit(gallery["feature"], centered=True).T
        rows = []
        for row, number in enumerate(chosen.tolist()):
            label = int(queries["label"][number])
            tiles = []
            for place in near[row].tolist():
                theirs = int(gallery["label"][place])
                color = strips.UNKNOWN if label < 0 else (strips.SAME if theirs == label else strips.OTHER)
                told = f"similarity {alike[row, place]:.2f}"
                tiles.append(self.tile("train", int(gallery["index"][place]), told, color))
            rows.append((self.tile(options.split, int(queries["index"][number])), tiles))
        yield "neighbors", strips.neighbors(rows)

    def tile(self, split: str, number: int, below: str = "", color: str = "#ffffff") -> Tile:
        """The middle frame of a video, with its class or else its name."""
        videos = self.videos[split]
        dataset = self.dataset(videos, MIDDLE, self.options.augmentation, self.options)
        clips = dataset[0, number].clips
        if not len(clips):
            raise Undrawable(f"{videos.path(number)} cannot be read")
        middle = clips[1, :, clips.shape[2] // 2].float().div(255)
        label = videos.videos[number].label
        caption = printable(videos.classes[label] if label >= 0 else Path(videos.videos[number].path).stem)
        return Tile(enlarged(middle[None])[0], caption, below, color)

    def curves(self) -> Pictures:
        found = read_curves(self.run.output)
        if not found:
            raise Undrawable("no task of this run has trained for two logged steps or more")
        yield "curves", curves.overview(found)


def pretraining(config: dict[str, Any], options: Visualize) -> tuple[Augmentation, ClipOptions]:
    """How the run's pretraining makes its clips; without one, how these options say."""
    section = config.get("pretrain")
    if section is None:
        return options.augmentation, options
    clip = ClipOptions(section["clip_frames"], section["frame_stride"], section["crop_size"])
    return Augmentation(**section["augmentation"]), clip


def evenly(count: int, most: int) -> list[int]:
    """At most so many of 0 .. count - 1, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def spread(labels: list[int], count: int) -> list[int]:
    """Places of so many videos, of evenly spread classes; of all the first, then of all the second, and so on.

    Without classes they are evenly spread themselves.
    """
    classes = sorted(set(labels))
    if len(classes) == 1:
        return evenly(len(labels), count)
    of_class = {each: [place for place, label in enumerate(labels) if label == each] for each in classes}
    kept = [classes[place] for place in evenly(len(classes), count)]
    rounds = range(max(map(len, of_class.values())))
    ordered = [of_class[each][turn] for turn in rounds for each in kept if turn < len(of_class[each])]
    return ordered[:count]
