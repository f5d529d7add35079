"""Many ranks: what they exchange, how they are started and joined, and what is told of one that fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import HOME, PRETRAIN, launch, read_json, read_lines, slow, start
from vidssl.engine import distributed
from vidssl.engine.distributed import Stopped
from vidssl.ranks import processes, slurm
from vidssl.registry import ConfigError
from vidssl.run.command import DONE, FAILED, STOPPED, WRONG

# -- what they exchange


def rows(rank: int) -> Tensor:
    """int64 [4, 3], different on each rank."""
    return torch.arange(12).view(4, 3) + 100 * rank


def exchanges(count: int) -> list[bool]:
    everything = torch.cat([rows(rank) for rank in range(count)])
    found = []
    for seed in range(5):
        order = torch.randperm(4 * count, generator=torch.Generator().manual_seed(seed))
        for kind in (torch.float32, torch.bfloat16, torch.uint8):
            part = rows(distributed.rank()).to(kind)[:, :, None]
            got = distributed.exchange(part, order)
            found.append(torch.equal(got, distributed.local_rows(everything.to(kind)[order])[:, :, None]))
    return found


@pytest.mark.parametrize("count", [2, slow(3)])
def test_an_exchange_is_a_share_of_all_rows_in_the_new_order(count: int) -> None:
    assert all(processes.start_ranks(exchanges, count, "cpu", (count,)))


def test_alone_an_exchange_is_a_new_order() -> None:
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(distributed.exchange(rows(0), order), rows(0)[order])


def draws(count: int) -> list[list[int]]:
    distributed.seed_step(3, 7)
    common = [distributed.shared_permutation(50).tolist() for _ in range(2)]
    own = torch.rand(50).mul(1e6).int().tolist()
    parts = distributed.gather_lists([torch.tensor(row) for row in (*common, own)])
    return [row.tolist() for row in parts]


def test_ranks_share_some_draws_and_have_others_of_their_own() -> None:
    first, second, own, *others = processes.start_ranks(draws, 2, "cpu", (2,))
    assert others[:2] == [first, second]
    assert first != second
    assert own != others[2]
    distributed.seed_step(3, 7)
    assert distributed.shared_permutation(50).tolist() == first, "also in one process"


def sums(count: int) -> list[list[float]]:
    """Of numbers whose sum depends on the order in which they are added."""
    values = torch.tensor([1e8, 1.0, -1e8]).roll(distributed.rank()).repeat(5)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(15, 1, bias=False))
    model.register_comm_hook(None, distributed.ordered_sum)
    model(values).sum().backward()
    whole = distributed.gather(values[None])
    expected = ((whole[0] + whole[1]) + whole[2]) / 3
    return [distributed.mean(values).tolist(), model.module.weight.grad[0].tolist(), expected.tolist()]


@pytest.mark.slow
def test_sums_over_ranks_are_in_the_order_of_the_ranks() -> None:
    mean, gradient, expected = processes.start_ranks(sums, 3, "cpu", (3,))
    assert mean == gradient == expected


def test_under_autocast_clips_travel_as_the_network_sees_them() -> None:
    clip, conv = torch.rand(2, 3, 4, 8, 8), torch.nn.Conv3d(3, 4, 3)
    assert distributed.to_autocast_dtype(clip) is clip
    with torch.autocast("cpu", torch.bfloat16):
        assert distributed.to_autocast_dtype(clip).dtype == torch.bfloat16
        assert torch.equal(conv(distributed.to_autocast_dtype(clip)), conv(clip))


# -- what is told of one that fails


def raises_on_the_second(problem: Exception) -> None:
    if distributed.rank() == 1:
        raise problem
    distributed.barrier()


def test_the_error_of_a_rank_is_raised_here_with_its_traceback() -> None:
    with pytest.raises(ConfigError, match="a=1: no") as caught:
        processes.start_ranks(raises_on_the_second, 2, "cpu", (ConfigError(["a=1: no", "b=2: no"]),))
    assert caught.value.problems == ["a=1: no", "b=2: no"]
    (note,) = caught.value.__notes__
    assert note.startswith("on rank 1:")
    assert "raises_on_the_second" in note


def dies_on_the_second() -> None:
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def sleeps_on_the_first() -> None:
    if distributed.rank() == 1:
        os._exit(3)
    time.sleep(100)


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (dies_on_the_second, "rank 1 was killed by SIGKILL"),
        slow(sleeps_on_the_first, "rank 1 ended with status 3"),
    ],
)
def test_a_lost_rank_ends_the_others(work, told: str) -> None:
    begun = time.monotonic()
    with pytest.raises(processes.RankLost, match=told):
        processes.start_ranks(work, 2, "cpu", ())
    assert time.monotonic() - begun < 30


def misses_the_other() -> None:
    if distributed.rank() == 1:
        os._exit(0)
    try:
        distributed.barrier()
    except RuntimeError as error:
        raise distributed.translate_error(error) from error


def test_what_a_rank_says_that_misses_another_is_not_told_in_its_place() -> None:
    with pytest.raises(processes.RankLost, match="rank 1 ended with status 0"):
        processes.start_ranks(misses_the_other, 2, "cpu", ())


def test_a_lost_connection_is_explained() -> None:
    lost = distributed.translate_error(RuntimeError("[../pair.cc:553] Connection closed by peer [127.0.0.1]:1"))
    assert isinstance(lost, distributed.PeerLost)
    assert "another rank has ended" in str(lost)
    other = RuntimeError("out of memory")
    assert distributed.translate_error(other) is other


def works_until_asked() -> str:
    with distributed.stopping_on_signals():
        while not distributed.stop_asked():
            time.sleep(0.01)
        distributed.stop_if_asked()
    return "never"


@pytest.mark.parametrize("number", [signal.SIGUSR2, slow(signal.SIGTERM), slow(signal.SIGINT)])
def test_a_signal_reaches_all_ranks_even_before_they_can_take_it(number: int) -> None:
    before = signal.getsignal(number)
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()  # they import torch at that time
    with pytest.raises(Stopped) as caught:
        processes.start_ranks(works_until_asked, 2, "cpu", ())
    assert caught.value.reason == number
    assert signal.getsignal(number) is before


def test_time_that_is_over_stops_like_a_signal() -> None:
    with distributed.stopping_on_signals(minutes=0.02 / 60):
        assert distributed.stop_asked() == 0
        time.sleep(0.05)
        assert distributed.stop_asked() == distributed.TIME_IS_OVER


def test_a_second_signal_ends_at_once_unless_it_is_the_same_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    with distributed.stopping_on_signals(), pytest.raises(Stopped), distributed.noting_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal and a launcher would send it
        assert distributed.stop_asked() == signal.SIGTERM
        monkeypatch.setattr(distributed, "AT_ONCE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


# -- runs

LONG = ("task=pretrain", "pretrain.epochs=400", "pretrain.batch_size=8", "devices=2", "accelerator=cpu", "output=run")


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def lines(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_and_is_named(small: list[str], tmp_path: Path) -> None:
    process = start([*small, *LONG], tmp_path, tmp_path / ".launched")
    wait_for(lambda: lines(tmp_path / "run/metrics.jsonl") > 5)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    process.join(30)
    assert process.exitcode == FAILED
    told = (tmp_path / ".launched.err").read_text()
    assert told.startswith("error: rank 1 was killed by SIGKILL")
    assert "Traceback" not in told
    record = read_json(tmp_path / "run/run.json")
    assert record["status"] == "failed"
    assert "rank 1 was killed" in record["error"]


@pytest.mark.slow
def test_when_the_command_is_killed_its_ranks_write_no_more(small: list[str], tmp_path: Path) -> None:
    process = start([*small, *LONG], tmp_path, tmp_path / ".launched")
    wait_for(lambda: lines(tmp_path / "run/metrics.jsonl") > 0)
    both = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in both), 10)


@pytest.mark.slow
def test_a_signal_to_the_command_saves_on_all_ranks(small: list[str], tmp_path: Path) -> None:
    process = start([*small, *LONG, "data.workers=1"], tmp_path, tmp_path / ".launched")
    wait_for(lambda: lines(tmp_path / "run/metrics.jsonl") > 2)
    os.kill(process.pid, signal.SIGUSR2)
    process.join(30)
    assert process.exitcode == STOPPED
    assert read_json(tmp_path / "run/run.json")["status"] == "preempted"
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["progress"]["step"] == read_lines(tmp_path / "run/metrics.jsonl")[-1]["step"]


@pytest.mark.slow
def test_an_error_on_one_rank_has_its_own_log(small: list[str], tmp_path: Path) -> None:
    words = [*small, *LONG, "pretrain.optimizer.lr=1e30"]
    answer = launch(words, tmp_path)
    assert answer.status == FAILED
    assert "NotFinite: pretrain: not finite at step" in answer.err
    assert "on rank " in answer.err
    assert read_json(tmp_path / "run/run.json")["error"].startswith("pretrain: not finite")


def test_a_run_stops_when_its_time_is_over_and_goes_on(small: list[str], tmp_path: Path) -> None:
    words = [word for word in LONG if not word.startswith(("devices", "pretrain.epochs"))]
    words = [*small, *words, "pretrain.epochs=15", "trainer.log_every=1"]
    answer = launch([*words, "stop_after_minutes=0.005"], tmp_path)
    assert answer.status == STOPPED
    assert launch(words, tmp_path).status == DONE
    assert [row["step"] for row in read_lines(tmp_path / "run/metrics.jsonl")] == list(range(1, 31))


# -- launched by others

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29501"}


@pytest.mark.parametrize(
    ("found", "words", "told"),
    [
        ({"RANK": "0"}, ["-m", "seed=0,1"], "one rank of one run, which cannot be many runs"),
        ({"RANK": "0"}, ["sweeps=demo"], "one rank of one run, which cannot be many runs"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, ["-m", "seed=0,1"], "one rank of one run, which"),
        ({"RANK": "0"}, [], "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not: start the ranks with torchrun"),
        (TORCHRUN, ["devices=4"], "devices=4, nodes=1: torchrun or srun started 1 x 2 ranks"),
        slow(TORCHRUN, ["launcher=slurm"], "launcher=slurm: torchrun or srun started this already"),
        ({}, ["devices=512"], "devices=512"),
        slow({}, ["nodes=2", "launcher=submitit_local"], "nodes=2: launcher=submitit_local has this machine only"),
        slow({}, ["launcher=slurm", "launcher.sbatch.gpus_per_task=2", "check_only=true"], "one task for each GPU"),
        ({}, ["launcher=slurm", "launcher.sbatch.gres='gpu:4'", "check_only=true"], "one task for each GPU"),
    ],
)
def test_combinations_that_cannot_work_are_refused_at_once(
    found: dict, words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    answer = launch(words, tmp_path)
    assert answer.status == WRONG
    assert told in answer.err
    assert not list(tmp_path.rglob("run.json"))


def test_slurms_variables_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidssl.ranks.slurm.hostnames", lambda nodes: ["n3", "n4"])
    told = {
        "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_STEP_NODELIST": "n[3-4]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    }  # fmt: skip
    found = processes._as_torchrun_says_it(told)
    assert found.pop("MASTER_PORT") == processes._as_torchrun_says_it({**told, "SLURM_PROCID": "0"})["MASTER_PORT"]
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n3"}
    with pytest.raises(ConfigError, match="3,1: srun started different numbers of ranks on the nodes"):
        processes._as_torchrun_says_it({**told, "SLURM_STEP_TASKS_PER_NODE": "3,1"})


def test_ranks_meet_at_a_port_that_no_connection_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    ports = {int(distributed.meeting_port(f"{job}.{step}")) for job in range(1000) for step in range(3)}
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    assert max(ports) < (int(given.read_text().split()[0]) if given.exists() else 32768)
    assert len(ports) > 2000
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert distributed.meeting_port("1.0") == "1234"


def test_a_port_that_another_program_has_is_told(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("localhost", 0)) as other:
        port = str(other.getsockname()[1])
        for name, value in {**TORCHRUN, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        answer = launch([*small, *PRETRAIN, "task=pretrain", "accelerator=cpu"], tmp_path)
    assert answer.status == WRONG
    assert f"error: MASTER_PORT={port}: another program on localhost has this port" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("found", "config", "refused"),
    [
        ({"SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "2,3"}, {}, True),
        ({"SUBMITIT_EXECUTOR": "slurm", "CUDA_VISIBLE_DEVICES": "2,3"}, {}, True),
        ({"SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "2,3"}, {"devices": 2}, False),
        ({"SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "2"}, {}, False),
        ({"SLURM_STEP_ID": "0"}, {}, False),
        ({"SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "2,3"}, {"accelerator": "cpu"}, False),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, {}, False),  # a machine of one's own
    ],
)
def test_gpus_of_a_cluster_are_not_left_idle(
    found: dict, config: dict, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_STEP_ID", "SUBMITIT_EXECUTOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    problems = slurm.idle_gpus({"devices": 1, "accelerator": "auto", **config})
    assert bool(problems) == refused
    for told in ("devices=1: SLURM gave 2 GPUs", "devices=2", "--ntasks-per-node=2", "CUDA_VISIBLE_DEVICES=2 to"):
        assert all(told in problem for problem in problems)


@pytest.mark.slow
def test_under_torchrun_a_run_is_the_same_as_one_that_starts_its_ranks(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it; sums depend on the number of threads
    words = [*small, "pretrain.epochs=3", "pretrain.batch_size=8", "linear.batch_size=8", "linear.epochs=2"]
    answer = launch([*words, "devices=2", "output=own"], tmp_path)
    assert answer.status == DONE, answer.err
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2", str(HOME / "launch.py")]
    done = subprocess.run([*torchrun, *words], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (joined,) = tmp_path.glob("runs/*/*/*/run.json")
    for name in ("metrics.jsonl", "result.json"):
        assert joined.with_name(name).read_text() == (tmp_path / "own" / name).read_text()
