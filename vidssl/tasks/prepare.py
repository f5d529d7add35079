"""Index a data set once and say what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from vidssl import build
from vidssl.build import Run
from vidssl.data.manifest import index_file, summary
from vidssl.registry import ConfigError, NonNegativeInt, PositiveInt
from vidssl.tasks import TASKS, Task


@TASKS.register("prepare")
@dataclass(frozen=True)
class Prepare(Task):
    clip_frames: PositiveInt
    frame_stride: PositiveInt
    examples: NonNegativeInt

    splits = ("train",)
    evaluates = ()

    def __call__(self, run: Run) -> dict[str, float]:
        window = self.clip_frames * self.frame_stride
        found = {}
        for split in ("train", "test", "test_swap", "test_cf"):
            if split.startswith("test_") and not build.has_split(run, split):
                continue
            try:
                files = build.listing(run, split)
            except ConfigError as error:
                if split == "train":
                    raise
                run.log.say(f"no {split} split: {error}")
                break
            videos = build.manifest(run, split, window, training=split == "train")
            for line in summary(files, videos, self.examples):
                run.log.say(f"{split}: {line}")
            found |= {f"{split}_videos": float(len(videos)), f"{split}_listed": float(len(files.videos))}
            found |= {f"{split}_{flaw}": float(len(names)) for flaw, names in videos.flaws.items()}
        options = build.data_options(run)
        run.log.say(f"index: {index_file(files.root, options.index_folder)}")
        if options.cache:
            run.log.say(f"copies: {build.cache_folder(files, options)}")
        return found
