"""What the user types: mistakes are answered at once, all of them, with status 2 and what to do."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import HOME, launch, make_video, slow
from vidssl.data.loader import DataOptions
from vidssl.methods.fame import FAME
from vidssl.run.check import RunOptions
from vidssl.run.command import DONE, STOPPED, WRONG, explain, register_resolvers, run

# words -> what the answer contains
MISTAKES = {
    "unknown method": (["method=fmae"], ["method=fmae", "Did you mean fame?", "moco"]),
    "unknown backbone": (["backbone=r3d_18"], ["backbone=r3d_18", "Did you mean r3d18?", "tiny"]),
    "unknown data set": (["dataset=ucf-101"], ["dataset=ucf-101", "Did you mean ucf101?", "kinetics400"]),
    "unknown task": (["task=[pretrain,linaer]"], ["task=linaer", "Did you mean linear?", "retrieve"]),
    "unknown augmentation": (["augmentation@pretrain.augmentation=sll"], ["sll", "Did you mean ssl?"]),
    "unknown key": (["method.betta=0.5"], ["method.betta=0.5", "Did you mean method.beta?", "background"]),
    "unknown key without a place": (["epochs=5"], ["epochs=5", "Did you mean pretrain.epochs"]),
    "key of a task that is not there": (["finetune.epochs=3"], ["finetune is not among", "finetune]"]),
    "added key": (["+method.gamma=0.3"], ["method.gamma=0.3", "unknown key", "beta"]),
    "wrong type": (["pretrain.epochs=ten"], ["pretrain.epochs=ten", "whole number"]),
    "text for a number": (["seed=first"], ["seed=first", "whole number"]),
    "missing value": (["dataset=ucf101", "task=pretrain"], ["dataset.root: missing", "dataset.root=..."]),
    "out of range": (["method.beta=1.5"], ["method.beta=1.5", "(0, 1]"]),
    "word that is not allowed": (["method.mask=motion"], ["method.mask=motion", "fame, gauss, grid, seed"]),
    "list without quotes": (["task=pretrain,linear"], ["task=pretrain,linear", "'task=[pretrain,linear]'", "-m"]),
    "not KEY=VALUE": (["prepare"], ["prepare", "KEY=VALUE", "task=prepare"]),
    "unreadable value": (["pretrain.epochs=[1"], ["pretrain.epochs=[1", "cannot be read"]),
    "crop and stride": (["backbone=i3d", "crop_size=112"], ["crop_size=112", "i3d", "96 or 128"]),
    "clip and stride": (["backbone=i3d", "crop_size=32", "clip_frames=12"], ["clip_frames=12", "multiple of 8"]),
    "batch and ranks": (["devices=3", "accelerator=cpu"], ["pretrain.batch_size=64", "multiple of 3"]),
    "batch of one": (["pretrain.batch_size=1"], ["pretrain.batch_size=1", "2 videos or more"]),
    "batch and data": (["pretrain.batch_size=600"], ["pretrain.batch_size=600", "only 512 videos"]),
    "missing folder": (["dataset=ucf101", "dataset.root=/x", "task=pretrain"], ["dataset.root=/x", "no such folder"]),
    "missing checkpoint": (["task=linear", "checkpoint=no/such.pt"], ["checkpoint=no/such.pt", "no such file"]),
    "no checkpoint": (["task=linear"], ["checkpoint: missing", "task=[pretrain,linear]", "checkpoint=none"]),
    "classifier needed": (["task=test", "checkpoint=none"], ["checkpoint=none", "classifier", "finetune"]),
    "half precision on a CPU": (["precision=fp16", "accelerator=cpu"], ["precision=fp16", "GPU", "bf16"]),
    "CUDA graphs on a CPU": (["compile=graphs", "accelerator=cpu"], ["compile=graphs", "need a GPU", "true"]),
    "contradicting probe": (["linear.features=online"], ["linear.normalize=standardize", "linear.features=cached"]),
    "score of no task": (["score=test.top1"], ["score=test.top1", "pretrain, linear, retrieve"]),
    "no runs to report": (["task=report", "report.runs=/no/such"], ["report.runs=/no/such", "no such folder"]),
    "sweep that is not there": (["sweeps=fame_betta"], ["sweeps=fame_betta", "demo"]),
    "a file for a folder": (["output=/dev/null", "seed=-1"], ["output=/dev/null: cannot be made", "file)", "seed=-1"]),
    "an index in a file": (["data.index_folder=/dev/null/i"], ["data.index_folder=/dev/null/i:", "is a file"]),
    "too long a name": (["output=" + 300 * "a"], ["cannot be made (file name too long)"]),
    "nodes": (["nodes=2"], ["nodes=2", "launcher=local"]),
}  # fmt: skip


def test_removed_keys_are_answered_with_what_replaces_them(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = {"workers": RunOptions, "data.threads": DataOptions, "method.alpha": FAME}
    for key, options in removed.items():
        monkeypatch.setattr(options, "removed", {key.split(".")[-1]: f"see {key}"}, raising=False)
    monkeypatch.setenv("VIDSSL_HOME", str(HOME))
    register_resolvers()
    problems = explain([f"{key}=1" for key in removed], HOME)
    assert problems == [f"{key}=1: this key was removed; see {key}" for key in removed]


# In the fast suite: every way in which vidssl.run.command finds a mistake, and some that the check finds
AT_ONCE = (
    "unknown method", "unknown task", "unknown augmentation", "unknown key", "unknown key without a place", "added key",
    "key of a task that is not there", "wrong type", "missing value", "out of range", "list without quotes",
    "not KEY=VALUE", "unreadable value", "sweep that is not there", "a file for a folder", "an index in a file",
    "too long a name",
)  # fmt: skip


@pytest.mark.parametrize("name", [name if name in AT_ONCE else slow(name) for name in MISTAKES])
def test_a_mistake_is_answered_with_status_2_key_and_remedy(name: str, tmp_path: Path) -> None:
    words, expected = MISTAKES[name]
    answer = launch(words, tmp_path)
    assert answer.status == WRONG, answer.err
    for part in expected:
        assert part in answer.err, answer.err
    assert "Traceback" not in answer.err
    assert answer.cpu_seconds < 5
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".launched")] == [], "no work was done"


def test_all_jobs_of_a_sweep_are_checked_before_the_first_works(tmp_path: Path) -> None:
    for words, expected in (
        (
            ["-m", "seed=0,x", "method.beta=0.5,3"],
            ["error: seed=x: must be", "error: method.beta=3: must lie in (0, 1]"],
        ),
        (["sweeps=demo", "seed=0,y"], ["error: seed=y: must be a whole number"]),
        (["method=moco,fane", "-m", "seed=range(0,2)"], ["error: method=fane", "Did you mean fame?"]),
    ):
        answer = launch(words, tmp_path)
        assert answer.status == WRONG
        for part in expected:
            assert part in answer.err, answer.err
        assert not list(tmp_path.rglob("run.json"))


def test_settings_may_stand_around_a_flag(tmp_path: Path) -> None:
    answer = launch(
        ["method=moco", "-m", "seed=range(0,2)", "task=[pretrain],[pretrain,linear]", "check_only=true"], tmp_path
    )
    assert answer.status == DONE, answer.err
    assert answer.out.count("The configuration is sound: method=moco") == 4


def test_two_mistakes_are_both_reported(tmp_path: Path) -> None:
    for words, expected in (
        (["method.betta=0.5", "pretrain.epochs=-1"], ["method.beta?", "pretrain.epochs=-1"]),
        (["method=fmae", "linear.epochs=x"], ["Did you mean fame?", "linear.epochs=x"]),
        (["backbone=r3d", "method.mask=x", "seed=-3"], ["backbone=r3d", "method.mask=x", "seed=-3"]),
        (["method.beta=2", "trainer.log_every=0"], ["method.beta=2", "trainer.log_every=0"]),
        (["crop_size=33", "dataset=folder", "dataset.root=/no/such", "task=pretrain"], ["crop_size=33", "/no/such"]),
        (
            ["method=be", "method.extra_negative=none", "method.detach_negative=true", "crop_size=33"],
            ["detach", "size=33"],
        ),
    ):
        answer = launch(words, tmp_path)
        assert answer.status == WRONG
        for part in expected:
            assert part in answer.err, answer.err


def test_labels_are_asked_for_before_work(tmp_path: Path) -> None:
    for i in range(4):
        make_video(tmp_path / "videos" / f"{i}.mp4", 10, size=(32, 32))
    words = ["dataset=folder", f"dataset.root={tmp_path}/videos", "dataset.test_share=0.5", "pretrain.batch_size=2"]
    answer = launch([*words, "recipe=demo", "task=[pretrain,linear]"], tmp_path)
    assert answer.status == WRONG
    assert "the videos have no classes, task=linear needs them" in answer.err


def test_help_and_configuration_do_not_import_torch(tmp_path: Path) -> None:
    for words in (["--help"], ["--cfg", "job", "--resolve"]):
        code = (
            f"import sys, runpy; sys.argv = ['launch.py', *{words!r}]\n"
            f"try: runpy.run_path({str(HOME / 'launch.py')!r}, run_name='__main__')\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "assert 'torch' not in sys.modules, 'torch was imported'\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "fame" in done.stdout


def test_a_plain_process_answers_a_mistake_in_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(HOME / "launch.py"), "method.beta=7"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == WRONG
    assert "method.beta=7" in done.stderr
    assert time.monotonic() - begun < 30, "5 s on a quiet machine"


def test_check_only_prints_the_plan_and_does_nothing(tmp_path: Path) -> None:
    answer = launch(["check_only=true", "output=here"], tmp_path)
    assert answer.status == DONE, answer.err
    assert "pretrain: 512 videos, batches of 64, 25 epochs, 200 steps" in answer.out
    assert not (tmp_path / "data").exists()
    assert not list((tmp_path / "here").iterdir()) if (tmp_path / "here").exists() else True


@pytest.mark.parametrize("word", ["optimizer=sgd", "augmentation=none", "schedule=steps"])
def test_a_group_without_a_task_goes_to_the_first_that_has_one(word: str, tmp_path: Path) -> None:
    group, name = word.split("=")
    answer = launch([word, "--cfg", "job"], tmp_path)
    long_form = launch([f"{group}@pretrain.{group}={name}", "--cfg", "job"], tmp_path)
    assert answer.status == DONE
    assert answer.out == long_form.out != launch(["--cfg", "job"], tmp_path).out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_before_any_work_stops_as_one_during_it(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    monkeypatch.setenv("VIDSSL_HOME", "")  # set back at the end, as the others that run() sets
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        assert run(lambda: signal.raise_signal(number), HOME) == STOPPED
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    assert "the same command continues" in capsys.readouterr().err


def test_relative_paths_mean_what_they_mean_where_they_are_typed(tmp_path: Path) -> None:
    for number in range(4):
        make_video(tmp_path / "my videos=ü/run" / f"{number}.mp4", 10, size=(32, 32))
    words = ["dataset=folder", "dataset.root=my videos=ü", "recipe=demo", "task=pretrain", "pretrain.batch_size=4"]
    answer = launch([*words, "output=R&D #1", "hydra.job.chdir=true", "check_only=true"], tmp_path)
    assert answer.status == DONE, answer.err
    assert "R&D #1" in answer.out


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_empty_values_are_answered_with_their_likely_cause(multirun: list[str], tmp_path: Path) -> None:
    empty = ["output", "dataset.root", "checkpoint", "seed", "data.index_folder"]
    words = ["dataset=folder", "task=linear", *(f"{key}=" for key in empty), *multirun]
    answer = launch(words, tmp_path)
    assert answer.status == WRONG
    lines = answer.err.splitlines()
    for key in empty:
        expected = (
            f"error: {key}: empty; a shell variable that is not set leaves it so; give {key}=... or leave the word out"
        )
        assert expected in lines
    assert len(lines) == len(empty)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".launched")] == []
