"""Part methods: a training step of the run's method against another method's, both in our form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

from tests.compare.timing import Row, compared, interleaved, on_device
from vidssl.bench import step
from vidssl.bench.step import Options, Setting
from vidssl.build import Run
from vidssl.registry import ConfigError


def measure(run: Run, options: Options, baseline: dict[str, Any]) -> list[Row]:
    """In turn: same backbone, batch, precision and optimizer. flop_ratio is that of multiplications and additions."""
    name, other = run.config["method"]["name"], baseline["name"]
    steps = {"ours": step_of(run, options, run.config["method"]), "baseline": step_of(run, options, baseline)}
    mine, theirs = (step.count_flops(each) for each in steps.values())
    seconds = interleaved(steps, options.rounds, clock=on_device(run.device))
    setting = Setting.of(run, options, run.config["method"])
    row = compared("methods", f"step {setting}", seconds, "ours", "baseline")._replace(baseline=other)
    run.log.say(
        f"a step of {name} takes {1 / row.ratio:.2f} times as long as one of {other} (quartiles {1 / row.high:.2f} to "
        f"{1 / row.low:.2f}; {mine / theirs:.2f} times the floating-point operations)"
    )
    return [row._replace(figures={"times_as_long": 1 / row.ratio, "flop_ratio": mine / theirs})]


def step_of(run: Run, options: Options, method: dict[str, Any]) -> Callable[[], object]:
    """A training step from uint8 clips on the device to the new weights."""
    setting = Setting.of(run, options, method)
    trainer = step.untrained(setting)
    work = step.stepping(trainer, repeat(step.random_clips(setting, trainer.learner).to(run.device)))
    if not work():
        raise ConfigError(f"method={method['name']}: its first steps do not train; make them 0 to measure one")
    return work
