"""Train a backbone without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidssl import build
from vidssl.build import Augmentation, ClipOptions, Run, TrainOptions
from vidssl.clips import Batch
from vidssl.data.dataset import collate
from vidssl.engine.checkpoint import save_backbone
from vidssl.learner import Learner
from vidssl.report.frames import contact_sheet
from vidssl.tasks import TASKS, Task

PICTURED = 4  # videos whose clips are shown, at most


@TASKS.register("pretrain")
@dataclass(frozen=True)
class Pretrain(TrainOptions, ClipOptions, Task):
    augmentation: Augmentation

    splits = ("train",)
    trains_backbone = True
    leaves = "backbone"

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
        run.speed = trainer.speed()
        if run.log.is_main:
            save_backbone(run.output / "backbone.safetensors", learner.backbone, run.config["backbone"])
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
                clip = view * learner.augment.std + learner.augment.mean
                run.log.picture("pretrain", f"input-{name}", step, contact_sheet(clip))
