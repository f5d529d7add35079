"""Command line: Hydra around the application, and messages for commands that cannot run.

Exit status: 0 done, 1 failed, 2 wrong configuration or input, 75 stopped by a signal with the state saved.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidssl.engine import disk
from vidssl.engine.records import DONE, FAILED, STOPPED, WRONG
from vidssl.engine.text import print_any_name
from vidssl.ranks import slurm
from vidssl.registry import ConfigError, RunError, expand_home, nearest, unknown
from vidssl.run.words import globs_in_full, is_multirun, overrides, parsed, paths_as_typed, quoted, values_of

OPEN = ("launcher.sbatch.", "launcher.sbatch=")  # sections that take any key
LISTS = "a,b,c choice(a,b,c) range(1,5) glob(NAME*)"
OF_HYDRA = (HydraException, OmegaConfBaseException)
COMPOSING = (*OF_HYDRA, ValueError, TypeError)  # raised by Hydra while it composes; the last two for group=3
SWEEPERS = {name: f"hydra-{name}-sweeper" for name in ("ax", "nevergrad", "optuna")}  # sweeper -> package
OF_TASKS = ("optimizer", "schedule", "augmentation")  # groups of each training task
SEVERAL = (
    "torchrun or srun started this process as one rank of one run, which cannot be many runs; without them, devices=N "
    "gives each run its ranks, or launcher=slurm submits them"
)


def run(main: Callable[[], Any], home: Path) -> int:
    """Run the Hydra application `main`, whose conf/ is in `home`. Returns the exit status."""
    os.environ["VIDSSL_HOME"] = str(home)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes errors on unchanged
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # busy waiting takes processors from the loader's workers
    print_any_name()
    register_resolvers()
    for number in (signal.SIGTERM, signal.SIGUSR2):  # as Ctrl-C, until a run handles them
        signal.signal(number, signal.default_int_handler)
    _failures.clear()
    _sweeps.clear()
    if is_multirun(sys.argv[1:]) and ("RANK" in os.environ or slurm.tasks() > 1):
        return _refuse([SEVERAL])
    try:
        words = sys.argv[1:] = expand(paths_as_typed(_settings_first(sys.argv[1:])), home)
        if any(isinstance(parsed(word), str) for word in overrides(words)):
            return _refuse(explain(words, home))
        if is_multirun(words) and not any(
            word.startswith(("--", "-h", "-c")) and word != "--multirun" for word in words
        ):
            sys.argv[1:] = prepare_sweep(words, home)
        try:
            main()
        except OSError as error:  # Hydra makes the folder before a job's own checks
            return _refuse(_unmade_folder(error, home))
        _finish()
    except ConfigError as error:
        _failures.append((sys.argv[1:], error))
    except COMPOSING as error:
        problems = [] if _failures else explain(sys.argv[1:], home)
        if not problems and not _failures and isinstance(error, OF_HYDRA):
            problems = [" ".join(str(error).split())]
        if problems:
            return _refuse(problems)
        if not _failures:  # else a sweeper that got no score, because runs failed
            _failures.append((sys.argv[1:], error))
    except KeyboardInterrupt:  # before a run handles the signal, or a second one
        print("stopped at once; the same command continues from what is saved", file=sys.stderr)
        return STOPPED
    except Exception as error:  # a job's own errors are among the failures
        _failures.append((sys.argv[1:], error))
    for words, failure in _failures:
        if len(_failures) > 1:
            print(f"failed: {' '.join(words)}", file=sys.stderr)
        _print_error(failure)
    return max((_status(failure) for _, failure in _failures), key=(DONE, WRONG, FAILED).index, default=DONE)


_failures: list[tuple[list[str], Exception]] = []  # failed jobs of this command
_sweeps: list[Path] = []  # folders of sweeps whose table is to be printed


def _finish() -> None:
    """Submit the command's cluster jobs, and print the tables of its sweeps."""
    try:
        if "vidssl.ranks.submit" in sys.modules:
            sys.modules["vidssl.ranks.submit"].submit_waiting()
    finally:
        for folder in _sweeps:
            from vidssl.tasks.report import show_report  # imports here and below are late, so that --help is fast

            show_report(folder)


def _status(error: Exception) -> int:
    from vidssl.data.video import VideoError

    return WRONG if isinstance(error, (ConfigError, VideoError)) else FAILED


def _print_error(error: Exception) -> None:
    from vidssl.ranks.submit import FailedJobs
    from vidssl.run.app import FailedBefore

    error = disk.translate_error(error) or error
    if _status(error) == WRONG or isinstance(error, (FailedBefore, FailedJobs, RunError)):
        _refuse(getattr(error, "problems", [str(error)]))
    else:
        traceback.print_exception(error)


def _unmade_folder(error: OSError, home: Path) -> list[str]:
    """Every mistake of a command whose folder Hydra could not make; the folder itself where no key names it."""
    if error.filename is None or disk.cannot_be_made(Path(error.filename)) is None:
        raise error
    problems = explain(sys.argv[1:], home)
    typed = [parsed(word) for word in overrides(sys.argv[1:]) if word.startswith("output=")]
    problems += disk.unwritable("output", Path(expand_home(str(typed[-1].value())))) if typed else []
    return list(dict.fromkeys(problems)) + _unmade(Path(error.filename), problems)


def _unmade(folder: Path, problems: list[str]) -> list[str]:
    """A line if a folder that no key names cannot be made."""
    reason = disk.cannot_be_made(folder)
    if reason is None or any(problem.startswith("output=") for problem in problems):
        return []
    return [f"{disk.shown(folder)}: cannot be made ({reason}); give output=FOLDER, one that can be written"]


def _refuse(problems: list[str]) -> int:
    print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
    return WRONG


def application(cfg: DictConfig) -> float | None:
    """Run one job: a composed configuration in the folder that Hydra chose."""
    from vidssl.run.app import main

    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # hydra.job.chdir=true would give relative paths another meaning
    output, words = Path(hydra.runtime.output_dir), _typed(hydra.overrides.task)
    try:
        return main(cfg, output, sys.argv, words, is_one_of_many=hydra.mode == RunMode.MULTIRUN)
    except Exception as error:
        if type(error).__name__ == "Stopped":  # of vidssl.engine.distributed; a sweep ends here, too
            print(error, file=sys.stderr)
            raise SystemExit(STOPPED) from None
        _failures.append((words, error))  # Hydra would end a sweep at its first failure
        return None
    finally:
        _remove_if_empty(output)


def _typed(words: ListConfig | list[str]) -> list[str]:
    """Overrides as they were typed; Hydra's own list would resolve ${...} in them."""
    plain: Any = OmegaConf.to_container(words, resolve=False)
    return plain


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder that Hydra created before the configuration was checked, and empty ones above it."""
    here = Path.cwd()
    while folder != here and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
        if here not in folder.parents:
            return


def register_resolvers() -> None:
    """Register the resolvers of conf/.

    either: the first path unless it is null. below: a path relative to a folder. tasks: names of the run's tasks.
    for_backbone: the value listed for the run's backbone, else the second argument.
    """
    OmegaConf.register_new_resolver("either", _either, replace=True)
    OmegaConf.register_new_resolver("below", lambda path, top: os.path.relpath(expand_home(path), top), replace=True)
    OmegaConf.register_new_resolver("tasks", _task_names, replace=True)
    OmegaConf.register_new_resolver("for_backbone", _for_backbone, replace=True)


def _for_backbone(values: Mapping[str, Any], otherwise: Any, *, _root_: DictConfig) -> Any:
    return values.get(_root_.backbone.name, otherwise)


def _either(first: Any, second: Any) -> str:
    return expand_home(str(second if first is None else first))


def _task_names(*, _root_: DictConfig) -> str:
    folder = Path(os.environ["VIDSSL_HOME"]) / "conf" / "task"
    known = {file.stem for file in folder.glob("*.yaml")}
    return "-".join(str(name) for name in _root_ if name in known)


class SweepReport(Callback):
    """Hydra callback of a sweep: records its planned runs before they start, and prints their table at the end."""

    def __init__(self, **about: Any):
        """about: keys of the sweep's file, which vidssl.tasks.report reads from there."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from vidssl.report.plan import write_plan

        swept = config.hydra.sweeper.get("params") or {}
        if _is_basic(config.hydra.sweeper) and not config.check_only:
            choices = _choices(_typed(config.hydra.overrides.task), swept, Path(os.environ["VIDSSL_HOME"]))
            varied = {"seed", *swept, *(key for key, words in choices.items() if len(words) > 1)}
            write_plan(Path(config.hydra.sweep.dir), [list(job) for job in product(*choices.values())], varied)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if not config.check_only and config.launcher.name != "slurm":  # jobs have only been submitted
            _sweeps.append(Path(config.hydra.sweep.dir))


# ---------------------------------------------------------------------------------------------------------------------
# Short forms


def _settings_first(words: list[str]) -> list[str]:
    """Write `a=1 -m b=2` as `a=1 b=2 -m`; Hydra expects overrides next to each other."""
    settings = overrides(words)
    return settings + [word for word in words if word not in settings]


def expand(words: list[str], home: Path) -> list[str]:
    """Expand short forms for Hydra.

    `optimizer=adamw` sets the optimizer of the run's first task that has one: optimizer@pretrain.optimizer.
    launcher.sbatch takes any key. glob() is replaced by the names that it matches.
    """
    words = globs_in_full([f"++{word}" if word.startswith(OPEN) else word for word in words], partial(_options, home))
    short = [word for word in words if word.split("=")[0] in OF_TASKS]
    if not short:
        return words
    try:
        config = _compose([word for word in overrides(words) if word not in short], home)
    except COMPOSING:
        return words  # explained later
    expanded = []
    for word in words:
        group = word.split("=")[0]
        tasks = [str(name) for name, each in config.items() if isinstance(each, DictConfig) and group in each]
        expanded.append(f"{group}@{tasks[0]}.{word}" if word in short and tasks else word)
    return expanded


# ---------------------------------------------------------------------------------------------------------------------
# Explanations: Hydra stops at the first mistake and makes no suggestions


def explain(words: list[str], home: Path) -> list[str]:
    """Every mistake in a command line that Hydra could not compose, one line each."""
    groups: list[str] = []
    values: list[tuple[str, Override]] = []
    problems: list[str] = []
    doubtful: list[str] = []  # groups of which it is not known what was meant
    for word in words:
        if not word.startswith("-") and "=" not in word and word[:1] not in "~+" and not _belongs_to_flag(word, words):
            tasks = _options(home, "task")
            hint = f"; did you mean task={word}?" if word in tasks else ""
            problems.append(f"{word}: not of the form KEY=VALUE{hint}")
    for word in overrides(words):
        override = parsed(word)
        if isinstance(override, str):
            problems.append(override)
            continue
        group = override.key_or_group
        if instead := _instead_of(override.package or ""):
            problems.append(f"{word}: this key was removed; {instead}")
            continue
        options = _options(home, group)
        if group == "hydra/sweeper":
            problems += _missing_sweeper(word, override.value(), home)
        if not options or "." in group:
            values.append((word, override))
            continue
        wrong = [name for name in _chosen(override) if name not in options and not override.is_delete()]
        for name in wrong:
            none = f"{word}: chooses nothing; leave the word out, or ~{group} takes out what is chosen by itself"
            problems.append(none if name is None else unknown(group, name, options))
        if wrong:
            near = [name for name in (nearest(name, options) for name in wrong) if name]
            if len(near) < len(wrong):
                doubtful.append(group)
            elif len(_chosen(override)) == 1:
                groups.append(f"{override.get_key_element()}={near[0]}")
        elif override.is_sweep_override() and not is_multirun(words):
            choice = word.split("=", 1)[1]
            problems.append(f"{word}: several values; for a list quote it, '{group}=[{choice}]', for many runs add -m")
        else:
            groups.append(word)
    config, more = _compose_all(groups, home)
    problems += more
    if config is None:
        return problems
    good = list(groups)
    for word, override in values:
        key = override.key_or_group
        if override.is_add() or override.is_delete() or key.startswith("hydra") or key.split(".")[0] in doubtful:
            good += [] if key.startswith("hydra") else [word]
        elif _has(config, key):
            good.append(word)
        else:
            problems.append(_unknown_key(config, key, word, home))
    config, more = _compose_all(good, home)
    problems += more
    if config is not None and not doubtful:
        problems += _check(config, {})
    return list(dict.fromkeys(problems))


def _missing_sweeper(word: str, name: Any, home: Path) -> list[str]:
    try:
        _compose([word], home)
        return []
    except COMPOSING:
        if name in SWEEPERS:
            return [f"{word}: is in a package of its own; pip install {SWEEPERS[name]}"]
        return [unknown("hydra/sweeper", name, ["basic", *SWEEPERS])]


def prepare_sweep(words: list[str], home: Path) -> list[str]:
    """Arguments of a sweep, with one folder for all of its runs.

    Raises ConfigError with every mistake in its jobs, before the first starts.
    """
    hydra = _compose(overrides(words), home, hydra=True).hydra
    swept, is_basic = hydra.sweeper.get("params") or {}, _is_basic(hydra.sweeper)
    words = _globs_of_file(swept, words, home) + words
    choices = _choices(words, swept, home, discrete=is_basic)
    if is_basic:
        jobs = [list(job) for job in product(*choices.values())]
    else:  # too many to try: each value once
        first = {key: values[0] for key, values in choices.items()}
        jobs = [list({**first, key: value}.values()) for key, values in choices.items() for value in values]
    configs = [_compose(job, home) for job in jobs]
    known: dict[tuple[str, str], Any] = {}
    problems = [problem for config in configs for problem in _check(config, known)]
    problems += _moving_folder(words, jobs, home)
    problems += _unmade(Path(hydra.sweep.dir), problems)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return _with_folder(words, [config.output for config in configs], hydra.sweep, is_basic)


def _globs_of_file(swept: Mapping[str, Any], words: list[str], home: Path) -> list[str]:
    """Expand glob() in a sweep's file for keys that were not typed; Hydra would include _NAMES as well."""
    typed = {word.partition("=")[0] for word in words}
    globs = [f"{key}={values}" for key, values in swept.items() if "glob(" in str(values) and key not in typed]
    return globs_in_full(globs, partial(_options, home))


def _moving_folder(words: list[str], jobs: list[list[str]], home: Path) -> list[str]:
    """Problem of a sweep's folder that would differ between its runs."""
    folders = [word for word in words if word.startswith("hydra.sweep.dir=") and "${" in word]
    if len({_compose([*job, *folders], home, hydra=True).hydra.sweep.dir for job in jobs if folders}) < 2:
        return []
    return [
        f"{folders[-1]}: would be another folder for each run; put what differs between them into hydra.sweep.subdir, "
        "as in hydra.sweep.dir=OUT 'hydra.sweep.subdir=s${seed}'"
    ]


def _with_folder(words: list[str], outputs: list[str | None], sweep: DictConfig, is_basic: bool) -> list[str]:
    """Arguments of a sweep; if output= differs between runs, with their common parent as the sweep's folder.

    Raises ConfigError if there is no common parent but the working directory.
    """
    paths = [expand_home(output) for output in outputs if output is not None]
    if len(paths) < len(outputs) or len(set(outputs)) < 2:
        return words
    try:
        top = os.path.commonpath(paths)
    except ValueError:  # some absolute, some relative
        top = ""
    if top in ("", os.sep):
        raise ConfigError(
            f"output={outputs[0]} and output={outputs[1]}: the runs of a sweep need a folder of their own above them, "
            "as in 'output=OUT/s${seed}', or hydra.sweep.dir=OUT 'hydra.sweep.subdir=s${seed}'"
        )
    subdir = "${below:${output},${hydra.sweep.dir}}"
    if (
        not is_basic
        or len(set(outputs)) < len(outputs)
        or any(word.startswith("hydra.sweep.subdir=") for word in words)
    ):
        plain: Any = OmegaConf.to_container(sweep)
        subdir += f"/{plain['subdir']}"
    words = [word for word in words if not word.startswith(("hydra.sweep.dir=", "hydra.sweep.subdir="))]
    return [f"hydra.sweep.dir={quoted(top)}", f"hydra.sweep.subdir={quoted(subdir)}", *words]


def _is_basic(sweeper: DictConfig) -> bool:
    """Whether all jobs of the sweep are known in advance; an optimizing sweeper chooses one after the other."""
    return sweeper._target_.endswith(".BasicSweeper")


def _choices(words: list[str], swept: Mapping[str, Any], home: Path, *, discrete: bool = True) -> dict[str, list[str]]:
    """Overrides of each key that the jobs of a sweep get in order, as Hydra writes them.

    swept: key -> values in the sweep's file. discrete: refuse intervals, else an interval gives its two ends. Raises
    ConfigError for what cannot be read.
    """
    choices: dict[str, list[str]] = {}
    for word in [*(f"{key}={values}" for key, values in swept.items()), *overrides(words)]:
        override = parsed(word, partial(_options, home))
        if isinstance(override, str):
            raise ConfigError(override)
        if discrete and override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{word}: needs an optimizing sweeper, such as hydra/sweeper=optuna; allowed: {LISTS}")
        if not override.is_hydra_override():  # the last override of a key holds
            key = override.get_key_element()
            choices[key] = [f"{key}={value}" for value in values_of(override)]
    return choices


def _check(config: DictConfig, known: dict) -> list[str]:
    from vidssl.run.app import plain
    from vidssl.run.check import check

    try:
        return check(plain(config), known)
    except ConfigError as error:
        return error.problems


def _unknown_key(config: DictConfig, key: str, word: str, home: Path) -> str:
    first = key.split(".")[0]
    if instead := _instead_of(key, config):
        return f"{word}: this key was removed; {instead}"
    if first in _options(home, "task") and first not in config:
        tasks = [str(name) for name in config if name in _options(home, "task")]
        return f"{word}: {first} is not among this run's tasks; did you mean task=[{','.join([*tasks, first])}]?"
    keys = list(_keys(config))
    last = key.split(".")[-1]
    near = [other for other in keys if other.split(".")[-1] == last][:3]
    if not near and (most_similar := nearest(key, keys, cutoff=0.6)):
        near = [most_similar]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    parent = key.rpartition(".")[0]
    while parent and not isinstance(OmegaConf.select(config, parent), DictConfig):
        parent = parent.rpartition(".")[0]
    allowed = ", ".join(sorted(map(str, OmegaConf.select(config, parent) if parent else config)))
    return f"{word}: unknown key.{hint} Allowed keys{f' under {parent}' if parent else ''}: {allowed}"


def _instead_of(key: str, config: DictConfig | None = None) -> str | None:
    """What to do instead of setting a key of an earlier version; options list such keys as `removed`."""
    from vidssl.run.check import RunOptions, options_of

    name, _, option = key.partition(".")
    section = config.get(name) if config is not None else None
    part = section.get("name") if isinstance(section, DictConfig) else None
    options = options_of(name, part)
    return getattr(options, "removed", {}).get(name if options is RunOptions else option.split(".")[0])


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in map(str, config):
        yield f"{prefix}{name}"
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _keys(node, f"{prefix}{name}.")


def _has(config: DictConfig, key: str) -> bool:
    return key in set(_keys(config)) or "[" in key


def _belongs_to_flag(word: str, words: list[str]) -> bool:
    """Whether an argument is the value of a flag, as `job` of --cfg job."""
    index = words.index(word)
    return index > 0 and words[index - 1].startswith("-") and words[index - 1] not in ("-m", "--multirun", "--resolve")


def _chosen(override: Any) -> list[Any]:
    value = override.value()
    values = getattr(value, "list", []) if override.is_sweep_override() else [value]
    return [name for each in values for name in (each if isinstance(each, (list, tuple)) else [each])]


def _options(home: Path, group: str) -> list[str]:
    """Names in a group, from its folder."""
    folders = [home / "conf" / group, home / group] if group.split("/")[0] == "sweeps" else [home / "conf" / group]
    return sorted(file.stem for folder in folders for file in folder.glob("*.yaml") if not file.stem.startswith("_"))


def _compose_all(words: list[str], home: Path) -> tuple[DictConfig | None, list[str]]:
    """Configuration of the overrides that compose, and what is wrong with the others."""
    good: list[str] = []
    problems: list[str] = []
    try:
        return _compose(words, home), []
    except COMPOSING:
        pass
    for word in words:
        try:
            _compose([*good, word], home)
            good.append(word)
        except COMPOSING as error:
            problems.append(f"{word}: {' '.join(str(error).split())}")
    try:
        return _compose(good, home), problems
    except COMPOSING as error:
        return None, [*problems, str(error)]


def _compose(words: list[str], home: Path, *, hydra: bool = False) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(home / "conf"), version_base="1.3"):
        return compose("config", [_first_of_sweep(word) for word in words], return_hydra_config=hydra)


def _first_of_sweep(word: str) -> str:
    override = parsed(word)
    if isinstance(override, str) or not override.is_sweep_override():
        return word
    return f"{override.get_key_element()}={values_of(override)[0]}"
