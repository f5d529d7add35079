"""Do the features of a network follow the background or the motion? Nothing is trained but a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from typing import Annotated, Literal

import torch
from torch import Tensor

from vidssl import build
from vidssl.augment import counterfactual
from vidssl.augment.foreground import foreground_mask
from vidssl.build import Augmentation, ClipOptions, Run
from vidssl.clips import Batch
from vidssl.data.sampling import partners
from vidssl.engine import distributed
from vidssl.engine.checkpoint import write_text
from vidssl.evaluation import bias
from vidssl.evaluation.classifier import average, pooled
from vidssl.evaluation.features import of_all_ranks
from vidssl.evaluation.metrics import hits, prefers_motion
from vidssl.evaluation.probe import logistic
from vidssl.registry import PositiveInt, Within
from vidssl.report.conditions import draw, legend, table
from vidssl.report.tables import markdown
from vidssl.tasks import TASKS, Context, Task
from vidssl.tasks.costs import Cost, Costs

Read = Callable[[Tensor], Tensor]  # map [B, C, t, h, w] -> scores [B, classes]
Plain = Callable[[str], dict[str, Tensor]]  # split -> its pooled features, extracted once


@TASKS.register("bias")
@dataclass(frozen=True)
class Bias(ClipOptions, Task):
    """What becomes of accuracy and features where test clips are changed in one thing; pairs of clips that share
    either the background or the motion."""

    clips: PositiveInt
    augmentation: Augmentation
    batch_size: PositiveInt
    classifier: Literal["auto", "checkpoint", "probe"]
    mask: Literal["auto", "exact", "fame", "seed", "grid", "gauss"]
    beta: Annotated[float, Within("(0, 1)")]

    splits = ("train", "test")
    without_classifier = "bias.classifier=probe reads the features alone"

    @property
    def evaluates(self) -> tuple[str, ...]:
        return ("train", "test") if self.classifier == "probe" else ("test",)

    @property
    def starts_from(self) -> str:
        return "classifier" if self.classifier == "checkpoint" else "backbone"

    @property
    def reads_classifier(self) -> bool:
        return self.classifier != "probe"

    def conflicts(self, context: Context) -> list[str]:
        listing = context.listing("test") if self.mask == "exact" else None
        if listing is None or listing.recipes:
            return []
        return [
            f"bias.mask=exact: only rendered videos have exact masks, dataset={context.config['dataset']['name']} has "
            "not; allowed: auto, fame, seed, grid, gauss"
        ]

    def estimate(self, name: str, costs: Costs) -> Cost:
        """Test videos once for each change, rendered ones where the data set has them."""
        line, flops = costs.scoring(self, self.clips, ["test"], len(bias.CHANGES))
        cost = Cost([f"{name}: {line}"], flops)
        rendered = [["test_swap", "test_cf"]] if costs.listing("test").recipes else []
        for splits in [*rendered, ["train"]]:
            line, flops = costs.scoring(self, self.clips, splits)
            cost.flops += flops
            cost.lines.append(f"  {line}" + (", if the checkpoint has no classifier" if splits == ["train"] else ""))
        if self.mask == "exact" or rendered:
            costs.listing("test_mask")  # is rendered, too
        return cost

    def __call__(self, run: Run) -> dict[str, float]:
        backbone = build.backbone(run).to(run.device).eval()
        plain = cache(lambda split: self.extract(run, split, lambda clip: pooled(backbone, clip, unit=False)))
        read = self.reader(run, backbone, plain)
        found = self.changed(run, backbone, read)
        masked = bias.figures_of(found, found["other"], seed=run.seed)
        rendered = self.rendered(run, backbone, read, found, plain) if build.has_split(run, "test_swap") else {}
        figures = {**rendered, **masked}  # what is known exactly comes first
        if run.log.is_main:
            self.tell(run, figures)
        return figures

    def extract(self, run: Run, split: str, network: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """value, label, index of a split's videos."""
        return build.features(run, network, self, self.clips, self.augmentation, self.batch_size, split)

    # -- the classifier

    def reader(self, run: Run, backbone: torch.nn.Module, plain: Plain) -> Read | None:
        """What tells the class from a map; None for videos without classes."""
        classes = build.listing(run, "test").classes
        if not classes:
            return None
        classifier = build.classifier(run, backbone, classes) if self.reads_classifier else None
        if classifier is not None:
            return classifier.read
        train = plain("train")
        probe = logistic(train["value"], train["label"], len(classes)).to(run.device)
        return lambda feature_map: probe(average(feature_map, unit=False))

    # -- changed clips of any data set

    @torch.no_grad()
    def changed(self, run: Run, backbone: torch.nn.Module, read: Read | None) -> dict[str, Tensor]:
        """label, index [N]; of each change CHANGE.features [N, C] and CHANGE.scores [N, classes]; other [N]: the place
        of the video whose background each gets."""
        videos = build.manifest(run, "test", self.clip_frames * self.frame_stride, training=False)
        other = partners([video.label for video in videos.videos], run.seed)
        names = ["label", "index", *(f"{name}.features" for name in bias.CHANGES)]
        names += [f"{name}.scores" for name in bias.SCORED if read is not None]
        own: dict[str, list[Tensor]] = {name: [] for name in names}  # a rank may have no batch
        color = build.color(run, self.augmentation)
        for batch, places, masks in self.batches(run, other):
            shown = self.shown(run, batch, places, masks)
            for name, value in self.answers(run, backbone, color, read, batch, places, shown).items():
                own[name].append(value)
            if distributed.asked_here():
                break
        found = of_all_ranks(own)
        build.note_used(run, "test", len(found["index"]))
        at = {index: place for place, index in enumerate(found["index"].tolist())}
        found["other"] = torch.tensor([at.get(other[index], 0) for index in at])
        return found

    def batches(self, run: Run, other: Tensor) -> Iterator[tuple[Batch, Tensor, Batch | None]]:
        """Videos and those whose backgrounds they get, the places of both in the batch, int64 [2, B], and the masks of
        all, where they were rendered."""
        size = self.batch_size
        chunks = [range(start, min(start + size, len(other))) for start in range(0, len(other), size)]
        told = [[*chunk, *(int(other[place]) for place in chunk)] for chunk in chunks]
        load = [
            build.evaluation_loader(run, self.clips, self.augmentation.crop, self, told, split=split)
            for split in ("test", *(["test_mask"] if self.is_exact(run) else []))
        ]
        masks = load[1].epoch(0) if len(load) > 1 else repeat(None)
        mine = iter(chunks[distributed.rank() :: distributed.world()])
        tracked = run.log.track(load[0].epoch(0), len(load[0]), "changed clips of test")
        for batch, its_masks in zip(tracked, masks, strict=False):
            row = {index: place for place, index in enumerate(batch.index.tolist())}
            chunk = next(chunk for chunk in mine if not row.keys().isdisjoint(chunk))
            pairs = [(row[i], row[int(other[i])]) for i in chunk if i in row and int(other[i]) in row]
            if pairs:  # none where a video or its partner cannot be read
                yield batch, torch.tensor(pairs).T, its_masks

    def is_exact(self, run: Run) -> bool:
        return self.mask == "exact" or (self.mask == "auto" and build.has_split(run, "test_mask"))

    def shown(self, run: Run, batch: Batch, places: Tensor, masks: Batch | None) -> dict[str, Callable[[], Tensor]]:
        """change -> what makes its clips, float32 [B * V, 3, T, S, S], of the B videos in the first row of places."""
        clips, rendered = (None if each is None else each.to(run.device).clips for each in (batch, masks))
        own, theirs = (clips[row].flatten(0, 1).float().div(255) for row in places)
        own_mask, their_mask = (
            self.foreground(clip, None if rendered is None else rendered[row].flatten(0, 1))
            for clip, row in zip((own, theirs), places, strict=True)
        )
        numbers = batch.index[places[0]].tolist()
        order = torch.stack([counterfactual.frame_order(own.shape[2], run.seed, number) for number in numbers])
        order = order.to(run.device).repeat_interleave(batch.clips.shape[1], dim=0)
        own_ground = counterfactual.still_background(own, own_mask)
        their_ground = counterfactual.still_background(theirs, their_mask)
        return {
            "original": lambda: own,
            "other_background": lambda: counterfactual.composite(own, own_mask, their_ground),
            "no_foreground": lambda: counterfactual.without_foreground(own, own_mask),
            "frozen": lambda: counterfactual.frozen(own),
            "reversed": lambda: counterfactual.backwards(own),
            "shuffled": lambda: counterfactual.reordered(own, order),
            "before_own": lambda: counterfactual.composite(own, own_mask, own_ground),
            "other_motion": lambda: counterfactual.composite(theirs, their_mask, own_ground),
        }

    def answers(
        self,
        run: Run,
        backbone: torch.nn.Module,
        color: torch.nn.Module,
        read: Read | None,
        batch: Batch,
        places: Tensor,
        shown: dict[str, Callable[[], Tensor]],
    ) -> dict[str, Tensor]:
        """What the network says of each change, averaged over a video's clips."""
        b, v = places.shape[1], batch.clips.shape[1]
        told = {"label": batch.label[places[0]], "index": batch.index[places[0]]}
        with build.autocast(run):
            for name in bias.CHANGES:
                feature_map = backbone(color(shown[name]()))
                parts = {"features": average(feature_map, unit=True)}
                if read is not None and name in bias.SCORED:
                    parts["scores"] = read(feature_map)
                for kind, value in parts.items():
                    told[f"{name}.{kind}"] = value.float().view(b, v, -1).mean(dim=1).cpu()
        return told

    def foreground(self, clip: Tensor, rendered: Tensor | None) -> Tensor:
        """bool [B, 1, T, H, W], or [B, 1, 1, H, W] where all frames share one."""
        if rendered is not None:
            return rendered.float().mean(dim=1, keepdim=True) > 127.5
        kind = "fame" if self.mask == "auto" else self.mask
        mask = foreground_mask(clip, beta=self.beta, kind=kind)
        return (mask if mask.dtype is torch.bool else mask > 0.5)[:, None, None]

    # -- rendered videos of the synthetic data sets

    @torch.no_grad()
    def rendered(
        self, run: Run, backbone: torch.nn.Module, read: Read, found: dict[str, Tensor], plain: Plain
    ) -> dict[str, float]:
        """motion_preference and swap_top1 from test videos rendered on other backgrounds and with other motions;
        scene_top1, how well the background's family can be told."""

        def unit_and_scores(feature_map: Tensor) -> Tensor:
            return torch.cat([average(feature_map, unit=True), read(feature_map)], dim=1)

        width = backbone.out_channels
        swapped = self.extract(run, "test_swap", lambda clip: unit_and_scores(backbone(clip)))["value"]
        other = self.extract(run, "test_cf", lambda clip: pooled(backbone, clip, unit=True))["value"]
        preference = prefers_motion(found["original.features"], swapped[:, :width], other)
        told = bias.with_interval("motion_preference", preference, run.seed)
        left = bias.likeness(found["original.features"], swapped[:, :width], found["original.features"][found["other"]])
        told["swap_likeness"] = left.mean().item()
        told |= bias.with_interval("swap_top1", hits(swapped[:, width:], found["label"]), run.seed)
        families = {
            split: torch.tensor([recipe.family for recipe in build.listing(run, split).recipes])
            for split in ("train", "test")
        }
        if len(families["train"].unique()) > 1:
            probe = logistic(plain("train")["value"], families["train"], int(families["train"].max()) + 1)
            told |= bias.with_interval("scene_top1", hits(probe(plain("test")["value"]), families["test"]), run.seed)
        return told

    def tell(self, run: Run, figures: dict[str, float]) -> None:
        """The table and the figure: on the console, in bias.md and bias.svg."""
        sheet = table(figures)
        for title, *cells in [sheet.head, *sheet.rows]:
            run.log.say(f"  {title or sheet.title:37}{cells[0]:>24}{cells[1]:>10}{cells[2]:>11}")
        write_text(run.output / "bias.md", markdown([sheet], legend(figures), ""))
        write_text(run.output / "bias.svg", draw([("", [figures])]))
