"""Whole runs through launch.py: what they leave, and that neither kills nor workers change it."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import DATA, LINEAR, PRETRAIN, launch, read_json, read_lines, slow, start
from vidssl.run.command import DONE, FAILED, STOPPED, WRONG

SHORT = [*PRETRAIN, *LINEAR, "pretrain.epochs=6", "trainer.save_every=2", "task=[pretrain,linear]"]


@pytest.fixture(scope="module")
def finished(rendered: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default chain in its smallest size."""
    folder = tmp_path_factory.mktemp("finished")
    words = [
        *DATA,
        *PRETRAIN,
        *LINEAR,
        f"dataset.root={rendered}",
        "pretrain.epochs=2",
        "output=run",
        "trainer.pictures_every=1",
    ]
    answer = launch(words, folder)
    assert answer.status == DONE, answer.err + answer.out
    return folder / "run"


def test_a_run_leaves_every_promised_file(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    promised = {
        "best.pt",
        "config.yaml", "run.json", "metrics.jsonl", "tensorboard", "last.pt", "backbone.safetensors", "result.json",
        "train.log",
    }  # fmt: skip
    assert promised <= names
    assert not any("tmp" in name or name.startswith(".last") for name in names)
    run = read_json(finished / "run.json")
    assert run["status"] == "done"
    assert run["end"] >= run["start"]
    assert {"torch", "av", "python"} <= set(run["versions"])
    assert "pretrain.epochs=2" in run["overrides"]
    assert set(run["tasks"]) == {"pretrain", "linear", "retrieve"}
    assert all(task["cpu_seconds"] > 0 for task in run["tasks"].values())


def test_result_holds_the_figures_of_every_task(finished: Path) -> None:
    result = read_json(finished / "result.json")
    assert {"top1", "top5", "swap_top1"} <= set(result["linear"])
    assert {"R@1", "R@5", "R@10", "R@20", "R@50", "uncentered_R@1", "motion_preference"} <= set(result["retrieve"])
    assert result["motion_preference"] == result["retrieve"]["motion_preference"]
    for task in ("linear", "retrieve"):
        assert all(0 <= value <= 100 for value in result[task].values())
    assert result["retrieve"]["R@1"] <= result["retrieve"]["R@5"] <= result["retrieve"]["R@50"]


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def test_tensorboard_reads_back_with_the_numbers_of_metrics_and_result(finished: Path) -> None:
    found, expected = scalars(finished), {}
    for row in read_lines(finished / "metrics.jsonl"):
        for name, value in row.items():
            if name not in ("task", "step", "epoch"):
                expected[f"{row['task']}/{name}", row["step"]] = value
    assert found.keys() == expected.keys()
    assert all(found[key] == pytest.approx(value, rel=1e-6) for key, value in expected.items())
    result = read_json(finished / "result.json")
    for task in ("linear", "retrieve"):
        for name, value in result[task].items():
            assert any(found[key] == pytest.approx(value) for key in found if key[0] == f"{task}/{name}"), name


def test_pictures_are_on_disk_and_in_tensorboard(finished: Path) -> None:
    shown = {path.stem for path in (finished / "pictures").glob("*.png")}
    assert shown == {
        "pretrain-clip", "pretrain-foreground", "pretrain-swapped", "pretrain-input-left", "pretrain-input-right",
    }  # fmt: skip
    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert {tag.replace("/", "-") for tag in events.Tags()["images"]} == shown
    assert len(events.Images("pretrain/foreground")) == 3


def test_states_are_plain_and_the_backbone_names_itself(finished: Path) -> None:
    state = torch.load(finished / "last.pt", weights_only=True)
    assert state["progress"]["step"] == 4
    assert state["config"]["method"]["name"] == "fame"
    with safe_open(finished / "backbone.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["backbone"]) == {"name": "tiny", "width": 4}
        for key in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(key), state["learner"][f"online.backbone.{key}"])


def test_the_configuration_is_readable_and_complete(finished: Path) -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(finished / "config.yaml"))
    assert config == torch.load(finished / "last.pt", weights_only=True)["config"] | {"output": str(finished)}


def test_a_finished_run_says_so_and_trains_nothing(finished: Path, small: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    words = [*small, *PRETRAIN, *LINEAR, "pretrain.epochs=2", "output=run", "trainer.pictures_every=1"]
    answer = launch(words, finished.parent)
    assert answer.status == DONE, answer.err
    assert "this run is done" in answer.out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_another_configuration_in_the_same_folder_is_refused_with_the_differing_keys(
    finished: Path, small: list[str]
) -> None:
    words = [*small, *PRETRAIN, *LINEAR, "pretrain.epochs=2", "output=run", "trainer.pictures_every=1"]
    answer = launch([*words, "method.beta=0.3", "seed=4"], finished.parent)
    assert answer.status == WRONG
    assert "method.beta=0.3 (there 0.5)" in answer.err
    assert "seed=4 (there 0)" in answer.err
    assert "holds a run already" in launch([*words, "resume=never"], finished.parent).err
    assert launch([*words, "data.workers=1"], finished.parent).status == DONE, "workers change no figure"


def test_a_folder_in_which_nothing_was_saved_may_be_used_again(small: list[str], tmp_path: Path) -> None:
    words = [*small, *PRETRAIN, "task=pretrain", "output=run", "pretrain.epochs=1"]
    assert launch([*words, "dataset.root=/dev/null/no"], tmp_path).status != DONE
    assert launch(words, tmp_path).status == DONE


def outcome(folder: Path) -> tuple:
    """Everything of a run that kills and workers must not change."""
    state = torch.load(folder / "last.pt", weights_only=True)
    return (
        (folder / "metrics.jsonl").read_text(),
        read_json(folder / "result.json"),
        {key: value.numpy().tobytes() for key, value in state["learner"].items()},
        state["progress"],
        scalars(folder),
    )


@pytest.fixture(scope="module")
def undisturbed(rendered: str, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = tmp_path_factory.mktemp("undisturbed")
    words = [*DATA, f"dataset.root={rendered}", *SHORT, "dataset.train_videos=64", "output=run"]
    assert launch(words, folder).status == DONE
    return outcome(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 3])
def test_workers_change_nothing(workers: int, undisturbed: tuple, small: list[str], tmp_path: Path) -> None:
    words = [*small, *SHORT, "dataset.train_videos=64", "output=run", f"data.workers={workers}"]
    assert launch(words, tmp_path).status == DONE
    assert outcome(tmp_path / "run") == undisturbed


def wait_for_lines(file: Path, count: int, process) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if file.exists() and file.read_text().count("\n") >= count:
            return
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_within_an_epoch_and_started_again_it_ends_as_if_nothing_had_happened(
    seed: int, undisturbed: tuple, small: list[str], tmp_path: Path
) -> None:
    words = [*small, *SHORT, "dataset.train_videos=64", "output=run", "data.workers=1"]
    chance, kills = random.Random(seed), 0
    for _ in range(3):
        lines = (tmp_path / "run/metrics.jsonl").read_text().count("\n") if kills else 0
        process = start(words, tmp_path, tmp_path / ".launched")
        wait_for_lines(tmp_path / "run/metrics.jsonl", lines + chance.randint(2, 7), process)
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    assert kills >= 2
    assert read_json(tmp_path / "run/run.json")["status"] == "running"
    assert launch(words, tmp_path).status == DONE
    assert outcome(tmp_path / "run") == undisturbed


OTHERS = {  # as in the papers, where queues and twin are part of the state
    "be": ("method.contrast.queue=20", "method.contrast.momentum=0.9"),
    "be_triplet": (),
    "be_pretext": (),
    "dclr": ("method.contrast.queue=20", "method.contrast.fill_steps=3"),
    "fima": ("method.contrast.queue=20", "method.contrast.motion_queue=20", "method.contrast.dense_queue=50"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_every_method_goes_on_as_if_it_had_not_been_killed(method: str, small: list[str], tmp_path: Path) -> None:
    """Killed once while DCLR's queue fills, once later."""
    words = [*small, "task=pretrain", "dataset.train_videos=64", "pretrain.batch_size=8", "pretrain.epochs=2"]
    words += [f"method={method}", *OTHERS[method], "trainer.save_every=1", "data.workers=1"]
    assert launch([*words, "output=straight"], tmp_path).status == DONE
    for lines in (2, 7):
        process = start([*words, "output=run"], tmp_path, tmp_path / ".launched")
        wait_for_lines(tmp_path / "run/metrics.jsonl", lines, process)
        process.kill()
        process.join()
    assert read_json(tmp_path / "run/run.json")["status"] == "running"
    assert launch([*words, "output=run"], tmp_path).status == DONE
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


@pytest.mark.parametrize("name", ["SIGTERM", slow("SIGINT"), slow("SIGUSR2")])
def test_a_signal_saves_and_stops_with_status_75(
    name: str, undisturbed: tuple, small: list[str], tmp_path: Path
) -> None:
    import os
    import signal

    words = [*small, *SHORT, "dataset.train_videos=64", "output=run", "data.workers=1", "trainer.save_every=1000"]
    process = start(words, tmp_path, tmp_path / ".launched")
    wait_for_lines(tmp_path / "run/metrics.jsonl", 5, process)
    os.kill(process.pid, getattr(signal, name))
    process.join(30)
    assert process.exitcode == STOPPED
    run = read_json(tmp_path / "run/run.json")
    assert run["status"] == "preempted"
    steps = torch.load(tmp_path / "run/last.pt", weights_only=True)["progress"]["step"]
    assert steps >= len(read_lines(tmp_path / "run/metrics.jsonl")) >= 5
    answer = launch(words, tmp_path)
    assert answer.status == DONE
    assert f"continues at step {steps}" in answer.out
    assert outcome(tmp_path / "run")[:3] == undisturbed[:3]


def test_two_processes_do_not_work_in_one_folder(small: list[str], tmp_path: Path) -> None:
    words = [*small, *PRETRAIN, "pretrain.epochs=200", "task=pretrain", "output=run"]
    process = start(words, tmp_path, tmp_path / ".first")
    wait_for_lines(tmp_path / "run/metrics.jsonl", 1, process)
    second = launch(words, tmp_path)
    process.kill()
    process.join()
    assert second.status == WRONG
    assert "another process works in this folder" in second.err


def test_a_loss_that_is_lost_ends_the_run_with_step_and_scalars(small: list[str], tmp_path: Path) -> None:
    words = [
        *small,
        *PRETRAIN,
        "task=pretrain",
        "output=run",
        "pretrain.optimizer.lr=1e30",
        "pretrain.schedule.warmup_epochs=0",
    ]
    answer = launch(words, tmp_path)
    assert answer.status == FAILED
    assert "not finite at step" in answer.err
    assert "loss=" in answer.err
    run = read_json(tmp_path / "run/run.json")
    assert run["status"] == "failed"
    assert "not finite" in run["error"]
    saved = tmp_path / "run/last.pt"
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        assert all(value.isfinite().all() for value in state["learner"].values() if value.is_floating_point())


def test_a_chain_hands_the_checkpoint_on_and_a_later_run_takes_it(
    finished: Path, small: list[str], tmp_path: Path
) -> None:
    """knn in a chain equals knn from the checkpoint, from the run's folder and from the bare backbone."""
    figures = []
    for i, given in enumerate((finished / "last.pt", finished, finished / "backbone.safetensors")):
        answer = launch([*small, "task=knn", f"checkpoint={given}", f"output=run{i}"], tmp_path)
        assert answer.status == DONE, answer.err
        assert "48 tensors matched" in answer.out
        figures.append(read_json(tmp_path / f"run{i}/result.json")["knn"])
    assert figures[0] == figures[1] == figures[2]
    untrained = launch([*small, "task=knn", "checkpoint=none", "output=none"], tmp_path)
    assert untrained.status == DONE


def test_the_checkpoint_says_which_backbone_it_is_for(finished: Path, small: list[str], tmp_path: Path) -> None:
    words = [word for word in small if not word.startswith("backbone")]
    answer = launch([*words, "task=knn", f"checkpoint={finished}", "output=run"], tmp_path)
    assert answer.status == DONE, answer.err
    assert "width: 4" in (tmp_path / "run/config.yaml").read_text()


def test_finetune_then_test_gives_the_same_figures(finished: Path, small: list[str], tmp_path: Path) -> None:
    words = [*small, "finetune.epochs=2", "finetune.batch_size=8", "finetune.validate_every=1"]
    chain = launch([*words, "task=[finetune,test]", f"checkpoint={finished}", "output=chain"], tmp_path)
    assert chain.status == DONE, chain.err
    result = read_json(tmp_path / "chain/result.json")
    assert result["test"] == result["finetune"]
    for name in ("last.pt", "best.pt"):
        assert len(set(torch.load(tmp_path / "chain" / name, weights_only=True)["classes"])) == 8
    assert "classes" not in chain.out, "nothing to tell of classes"
    alone = launch([*small, "task=test", "checkpoint=chain/last.pt", "output=alone"], tmp_path)
    assert alone.status == DONE, alone.err
    assert read_json(tmp_path / "alone/result.json")["test"] == result["test"]


def test_a_probe_on_clips_runs_and_its_classifier_can_be_tested(
    finished: Path, small: list[str], tmp_path: Path
) -> None:
    words = [*small, *LINEAR, "linear.features=online", "linear.normalize=unit", f"checkpoint={finished}", "output=run"]
    answer = launch([*words, "task=[linear,test]"], tmp_path)
    assert answer.status == DONE, answer.err
    result = read_json(tmp_path / "run/result.json")
    assert result["linear"] == result["test"]
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)["learner"]
    before = torch.load(finished / "last.pt", weights_only=True)["learner"]
    for key, value in state.items():
        if key.startswith("backbone."):
            assert torch.equal(value, before[f"online.{key}"]), "frozen, batch norm counts included"


def test_a_checkpoint_of_another_backbone_is_refused_before_work(
    finished: Path, small: list[str], tmp_path: Path
) -> None:
    words = [word for word in small if not word.startswith("backbone")]
    answer = launch([*words, "task=knn", f"checkpoint={finished}", "output=run", "backbone=tiny"], tmp_path)
    assert answer.status == WRONG
    assert "add backbone=tiny backbone.width=4" in answer.err
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"nothing of the kind")
    answer = launch([*small, "task=knn", f"checkpoint={garbage}"], tmp_path)
    assert answer.status == WRONG
    assert "not a PyTorch file: begins with b'nothing of the k'" in answer.err


def test_a_sweep_runs_every_job_prints_one_table_and_skips_what_is_done(small: list[str], tmp_path: Path) -> None:
    words = [
        "-m",
        "method=moco,fame",
        "seed=1,2",
        "task=[pretrain,linear]",
        "pretrain.max_steps=1",
        *small,
        *PRETRAIN,
        *LINEAR,
        "output=sweep",
    ]
    answer = launch(words, tmp_path)
    assert answer.status == DONE, answer.err
    results = sorted((tmp_path / "sweep").glob("*/result.json"))
    assert len(results) == 4
    assert "moco" in answer.out
    assert "+-" in answer.out
    report = (tmp_path / "sweep/report.md").read_text()
    for result in results:
        assert f"{read_json(result)['linear']['top1']:.1f}" in report
        step = read_json(result.with_name("run.json"))["tasks"]["pretrain"]["seconds_per_step"]
        assert f"| {step:.3f} |" in report
    before = {path: path.stat().st_mtime_ns for path in results}
    again = launch(words, tmp_path)
    assert again.status == DONE
    assert again.out.count("this run is done") == 4
    assert {path: path.stat().st_mtime_ns for path in results} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", ["trainer.accumulate=2", "precision=bf16", "trainer.channels_last=true", "trainer.clip_grad=0.1"]
)
def test_ways_of_computing_change_little(word: str, undisturbed: tuple, small: list[str], tmp_path: Path) -> None:
    words = [*small, *SHORT, "dataset.train_videos=64", "output=run", "task=pretrain"]
    words = [w for w in words if not w.startswith("linear") and w != "task=[pretrain,linear]"]
    assert launch([*words, word], tmp_path).status == DONE
    found = read_lines(tmp_path / "run/metrics.jsonl")
    expected = [json.loads(line) for line in undisturbed[0].splitlines()]
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.5 if "accumulate" in word else 0.02)
    assert [row["step"] for row in found] == [row["step"] for row in expected if row["task"] == "pretrain"]


@pytest.mark.slow
def test_a_compiled_backbone_learns_the_same(undisturbed: tuple, small: list[str], tmp_path: Path) -> None:
    words = [*small, *PRETRAIN, "dataset.train_videos=64", "output=run", "task=pretrain", "pretrain.max_steps=3"]
    assert launch([*words, "compile=true", "pretrain.epochs=6"], tmp_path).status == DONE
    found = read_lines(tmp_path / "run/metrics.jsonl")
    expected = [json.loads(line) for line in undisturbed[0].splitlines()]
    for ours, theirs in zip(found, expected, strict=False):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_two_ranks_run_the_whole_chain(small: list[str], tmp_path: Path) -> None:
    words = [*small, *PRETRAIN, *LINEAR, "pretrain.epochs=2", "output=run", "devices=2", "accelerator=cpu"]
    words += ["method.contrast.queue=16", "method.contrast.momentum=0.9"]
    answer = launch(words, tmp_path)
    assert answer.status == DONE, answer.err
    assert read_json(tmp_path / "run/run.json")["status"] == "done"
    assert {"pretrain", "linear", "retrieve"} <= set(read_json(tmp_path / "run/result.json"))
