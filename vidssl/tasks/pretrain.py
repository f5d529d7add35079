"""Train a backbone without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidssl import build
from vidssl.build import Augmentation, ClipOptions, Run, TrainOptions
from vidssl.clips import Batch
from vidssl.data.dataset import collate
from vidssl.engine.checkpoint import clip_format, save_backbone
from vidssl.learner import Learner
from vidssl.methods.contrast import METHODS
from vidssl.report.frames import contact_sheet
from vidssl.tasks import TASKS, Context, Task
from vidssl.tasks.costs import Cost, Costs, weights_bytes

PICTURED = 4  # videos whose clips are shown, at most


@TASKS.register("pretrain")
@dataclass(frozen=True)
class Pretrain(TrainOptions, ClipOptions, Task):
    augmentation: Augmentation

    splits = ("train",)
    leaves = "backbone"

    def conflicts(self, context: Context) -> list[str]:
        problems = context.method_problems(self)
        if self.batch_size // context.parts < 2:
            problems.append(
                f"pretrain.batch_size={self.batch_size}: batch norm and negatives need 2 videos or more on each of "
                f"{context.ranks} ranks"
            )
        return problems

    def estimate(self, name: str, costs: Costs) -> Cost:
        learner = self.learner(costs)
        cost, _ = costs.training(name, self, learner, filling=fill_steps(costs.config["method"]))
        cost.files["backbone.safetensors"] = weights_bytes(learner.backbone)
        return cost

    def learner(self, costs: Costs) -> Learner:
        """On the meta device, without color, which changes no shape, and without the steps that only fill a queue."""
        method = costs.config["method"]
        if fill_steps(method):
            method = {**method, "contrast": {**method["contrast"], "fill_steps": 0}}
        with torch.device("meta"):
            return METHODS.build(method, costs.backbone(), nn.Identity())

    def __call__(self, run: Run) -> dict[str, float]:
        learner = build.method(run, self.augmentation)
        loader = build.training_loader(run, "pretrain", learner.plan, self.augmentation.crop, self, self.batch_size)
        trainer = build.trainer(run, "pretrain", learner, self, file=run.state_file("pretrain"))
        every = run.config["trainer"]["pictures_every"]

        def show(epoch: int, step: int) -> None:
            if every and epoch % every == 0 and run.log.is_main:
                items = [loader.dataset[epoch, number] for number in range(min(PICTURED, len(loader.dataset)))]
                self.show(run, learner, collate(items)[0], step)

        show(0, 0)
        trainer.fit(loader, show)
        run.speed = trainer.meters.speed()
        if run.log.is_main:
            file, config = run.output / "backbone.safetensors", run.config
            save_backbone(file, learner.backbone, config["backbone"], clip_format(config["pretrain"]))
        run.checkpoint = str(run.state_file("pretrain"))
        return trainer.last_scalars()

    @torch.no_grad()
    def show(self, run: Run, learner: Learner, batch: Batch | None, step: int) -> None:
        """What the network gets to see, as a picture."""
        if batch is None:
            return
        torch.manual_seed(run.seed)
        batch = batch.to(run.device)
        learner.to(run.device)
        for name, clip in learner.pictures(batch).items():
            run.log.picture("pretrain", name, step, contact_sheet(clip))
        for name, view in learner.views(batch)._asdict().items():
            if isinstance(view, Tensor) and view.ndim == 5:
                run.log.picture("pretrain", f"input-{name}", step, contact_sheet(learner.shown(view)))


def fill_steps(method: dict[str, Any]) -> int:
    """Batches at the start that only fill the method's queue."""
    return (method.get("contrast") or {}).get("fill_steps", 0)
