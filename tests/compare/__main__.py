"""Ours against other people's loaders and the forms of the papers' releases.

    python -m tests.compare                                                      everything, some 15 minutes on a CPU
    python -m tests.compare data --files /data/ucf101 a.mp4
    python -m tests.compare step method=moco --backbones i3d --crop-size 224 --batch-size 16
    python -m tests.compare methods method=fame backbone=r2plus1d18 recipe=paper_small

Parts: data, reading clips against other loaders; aug, color and masks against kornia and the released form; step, the
method's training step against MoCo's released form; methods, the method's step against MoCo's in one direction, in our
form. KEY=VALUE words are those of launch.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as launch.py has it

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from tests.compare import aug, methods, reading, record, step
from tests.compare.loaders import available
from tests.compare.timing import Row
from vidssl.build import Augmentation, Run
from vidssl.engine import distributed
from vidssl.engine.device import prepare
from vidssl.engine.log import Log
from vidssl.registry import ConfigError
from vidssl.run.app import plain
from vidssl.run.check import check
from vidssl.run.command import explain, register_resolvers

HOME = Path(__file__).resolve().parents[2]
PARTS = ("data", "aug", "step", "methods")
BATCH_SIZE = {"aug": 8, "step": 2, "methods": 8}
BASELINE = ("method=moco", "method.contrast.symmetric=false")  # as its paper has it


@dataclass(frozen=True)
class Options:
    """What all parts are told."""

    batch_size: int
    clip_frames: int
    frame_stride: int
    crop_size: int
    rounds: int
    clip_pairs: int
    files: Sequence[str] | None
    material: str
    augmentation: Augmentation
    optimizer: dict[str, Any]
    schedule: dict[str, Any]


def main(words: Sequence[str]) -> int:
    """Exit status: 0 done, 2 wrong words."""
    try:
        return compare(arguments(words))
    except ConfigError as error:
        print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        return 2


def compare(chosen: argparse.Namespace) -> int:
    settings = [word for word in chosen.words if "=" in word]
    parts = [word for word in chosen.words if "=" not in word] or list(PARTS)
    try:
        config = composed(*settings)
        wrong = check(config)
    except ConfigError as error:
        wrong = error.problems
    backbones = [] if chosen.backbones == ["own"] else chosen.backbones
    wrong += [f"{part}: no such part; allowed: {', '.join(PARTS)}" for part in parts if part not in PARTS]
    wrong += [f"--files {path}: no such file or folder" for path in chosen.files or () if not Path(path).exists()]
    if "step" in parts:
        wrong += [problem for name in backbones for problem in step.unfit(name, chosen.clip_frames, chosen.crop_size)]
    if wrong:
        raise ConfigError(wrong)
    nowhere = Path(os.devnull)
    run = Run(config, nowhere, Log(nowhere), distributed.device(config["accelerator"]))
    prepare(run.precision, run.device)
    rows, left_out = [], available()[1] if "data" in parts else {}
    for name, reason in left_out.items():
        run.log.say(f"left out: {name}, {reason}")
    for part in parts:
        rows += measured(part, run, options(chosen, config, part), backbones, settings)
    run.log.say(record.table(rows))
    record.write(Path(chosen.json), rows, vars(chosen), left_out)
    run.log.say(f"all figures: {chosen.json}")
    return 0


def measured(part: str, run: Run, chosen: Options, backbones: Sequence[str], settings: Sequence[str]) -> list[Row]:
    if part == "data":
        return reading.measure(run, chosen)
    if part == "aug":
        return aug.measure(run, chosen)
    if part == "step":
        return step.measure(run, chosen, backbones)
    others = [word for word in settings if not word.startswith("method")]
    return methods.measure(run, chosen, composed(*others, *BASELINE)["method"])


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="PART or KEY=VALUE", help=f"parts: {', '.join(PARTS)}; none: all")
    parser.add_argument("--files", nargs="+", help="to read, or folders, of which some are; none: rendered ones")
    parser.add_argument("--material", default="data/bench", help="folder for rendered files (default: %(default)s)")
    parser.add_argument("--backbones", nargs="+", default=["i3d", "r2plus1d18"], help="of step; own: backbone=...")
    parser.add_argument("--batch-size", type=_count, help=f"videos; default: {BATCH_SIZE}")
    parser.add_argument("--json", default="runs/compare.json", help="what is written (default: %(default)s)")
    numbers = {"rounds": 5, "clip_pairs": 8, "clip_frames": 16, "frame_stride": 2, "crop_size": 112}
    for name, value in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=_count, default=value, help="default: %(default)s")
    return parser.parse_intermixed_args(list(words))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1 on")
    return int(text)


def options(chosen: argparse.Namespace, config: dict[str, Any], part: str) -> Options:
    section = config["bench"]
    return Options(
        batch_size=chosen.batch_size or BATCH_SIZE.get(part, 1),
        augmentation=Augmentation(**section["augmentation"]),
        optimizer=section["optimizer"],
        schedule=section["schedule"],
        **{key: vars(chosen)[key] for key in vars(chosen).keys() & Options.__annotations__.keys() - {"batch_size"}},
    )


def composed(*words: str) -> dict[str, Any]:
    """The configuration of these words, resolved. Raises ConfigError."""
    words = ["task=bench", "bench.parts=[step]", *words]
    register_resolvers()
    os.environ["VIDSSL_HOME"] = str(HOME)
    try:
        with initialize_config_dir(str(HOME / "conf"), version_base="1.3"):
            return plain(compose("config", words))
    except HydraException:
        raise ConfigError(explain(words, HOME)) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
