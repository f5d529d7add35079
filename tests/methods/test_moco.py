from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as processes
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import fill, golden
from vidssl.engine import distributed
from vidssl.methods.contrast import (
    KEYS_AT_ONCE,
    ContrastOptions,
    MomentumEncoder,
    Queue,
    batch_logits,
    contrast_loss,
    queue_logits,
)
from vidssl.methods.moco import MoCo, Pair

PLAIN = ContrastOptions(
    dim=16, head="linear", hidden=None, head_std=0.01, queue=48, momentum=0.9, temperature=0.1, symmetric=True,
    shuffle_bn=True, enqueue="after_both",
)  # fmt: skip


def options(**changes: object) -> ContrastOptions:
    return ContrastOptions(**{**vars(PLAIN), **changes})


class Small(nn.Module):
    """The tiny encoder of the golden files, without its last layer."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm3d(8)

    def forward(self, clip: Tensor) -> Tensor:
        return self.bn(self.conv(clip)).relu()


def moco(**changes: object) -> MoCo:
    torch.manual_seed(0)
    return MoCo(Small(), nn.Identity(), contrast=options(**changes))


def pair(batch: int = 6, seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    return Pair(torch.randn(batch, 3, 4, 12, 12), torch.randn(batch, 3, 4, 12, 12))


# -- golden


def official_name(key: str, mlp: bool) -> str:
    """Name in the released encoder of a tensor of ours."""
    part, name = key.rsplit(".", 1)
    layers = {"head.2": "fc.0", "head.4": "fc.2"} if mlp else {"head.2": "fc"}
    return f"{layers.get(part, part.removeprefix('backbone.'))}.{name}"


def from_file(file: dict[str, np.ndarray], first_place: int) -> MoCo:
    """method.contrast.enqueue=after_each_pass reproduces the released order of queue and logits."""
    mlp = bool(file["mlp"])
    method = moco(
        dim=int(file["dim"]), queue=int(file["K"]), momentum=float(file["m"]), temperature=float(file["T"]),
        head="mlp" if mlp else "linear", enqueue="after_each_pass",
    )  # fmt: skip
    for prefix, network in (("encoder_q", method.online), ("encoder_k", method.key_encoder.network)):
        state = network.state_dict()
        network.load_state_dict({k: fill(f"{prefix}.{official_name(k, mlp)}", v.shape) for k, v in state.items()})
    method.queue.keys.copy_(torch.from_numpy(file["queue_before"]).T)
    method.queue.place.fill_(first_place)
    return method.train()


def close(found: Tensor, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=tolerance)


def assert_states(method: MoCo, file: dict[str, np.ndarray], prefix: str, tolerance: float) -> None:
    mlp, checked = bool(file["mlp"]), 0
    for part, network in (("encoder_q", method.online), ("encoder_k", method.key_encoder.network)):
        for key, value in network.state_dict().items():
            name = f"{prefix}{part}.{official_name(key, mlp)}"
            if name in file:
                close(value, file[name], tolerance)
                checked += 1
    assert checked == sum(key.startswith(prefix) for key in file) > 0


@pytest.mark.parametrize("name", ["single_linear", "single_mlp"])
def test_golden_steps_of_one_process_after_each_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = golden(f"moco/{name}.npz")
    method, mlp = from_file(file, int(file["ptr0"])), bool(file["mlp"])
    rates = {key: float(file[key]) for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(method.online.parameters(), **rates)
    contrast = method.contrast
    seen: list = []
    monkeypatch.setattr(method, "contrast", lambda views: seen.append(contrast(views)) or seen[-1])
    for step in range(int(file["steps"])):
        out = method(Pair(*(torch.from_numpy(file[f"s{step}_im_{side}"]) for side in "qk")))
        for turn, (_, logits, targets) in enumerate(seen[-1], start=1):
            close(logits, file[f"s{step}_logits_{turn}"], 2e-5)
            np.testing.assert_array_equal(targets.numpy(), file[f"s{step}_labels_{turn}"])
        close(out.loss, file[f"s{step}_loss"], 5e-6)
        close(method.queue.keys.T, file[f"s{step}_queue_after"], 5e-6)
        assert method.queue.place == int(file[f"s{step}_ptr_after"][0])
        optimizer.zero_grad()
        out.loss.backward()
        if step == 0:
            for key, parameter in method.online.named_parameters():
                close(parameter.grad, file[f"s0_grad.encoder_q.{official_name(key, mlp)}"], 5e-6)
        optimizer.step()
        assert_states(method, file, f"s{step}_state.", 5e-6)


def in_two_processes(work, tmp_path: Path, *arguments: object) -> None:
    processes.spawn(partial(_as_rank, work), (str(tmp_path / "store"), *arguments), nprocs=2)


def _as_rank(work, rank: int, store: str, *arguments: object) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    with distributed.process_group("cpu", f"file://{store}"):
        work(rank, *arguments)


def test_golden_two_processes_shuffle_bn_after_each_pass(tmp_path: Path) -> None:
    in_two_processes(_golden_rank, tmp_path)


def _golden_rank(rank: int) -> None:
    file = golden("moco/world2_linear.npz")
    method = from_file(file, 0)
    orders = [torch.from_numpy(order) for order in file["shuffle"]]
    distributed.shared_permutation = lambda count: orders.pop(0)
    views = Pair(*(torch.from_numpy(file[f"r{rank}_im_{side}"]) for side in "qk"))
    for turn, (_, logits, _) in enumerate(method.contrast(views), start=1):
        close(logits, file[f"r{rank}_logits_{turn}"], 2e-5)
    assert not orders, "both passes shuffled"
    close(method.queue.keys.T, file[f"r{rank}_queue_after"], 2e-5)
    assert method.queue.place == int(file[f"r{rank}_ptr_after"][0])
    assert_states(method, file, f"r{rank}_state.", 2e-5)


# -- laws


def test_indistinguishable_keys_cost_the_logarithm_of_their_number() -> None:
    query = F.normalize(torch.ones(3, 5), dim=1)
    queue = Queue(5, 31)
    queue.keys.copy_(query[:1].expand(31, -1))
    logits = queue_logits(query, query, queue, 0.07)
    loss = F.cross_entropy(logits, torch.zeros(3, dtype=torch.int64))
    assert loss.item() == pytest.approx(math.log(32), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("half", [False, True])
def test_the_loss_against_a_queue_is_cross_entropy_with_its_gradient(temperature: float, half: bool) -> None:
    """Also where the queue moves on before the loss is differentiated, and float32 under half precision."""
    torch.manual_seed(0)
    queue, key = Queue(16, 300), F.normalize(torch.randn(5, 16), dim=1)
    given = [F.normalize(torch.randn(5, 16), dim=1).requires_grad_() for _ in range(2)]
    given[1].data.copy_(given[0].data)
    expected = queue_logits(given[0], key, queue, temperature)
    (3 * F.cross_entropy(expected, torch.zeros(5, dtype=torch.int64))).backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss, logits, target = contrast_loss(given[1], key, queue, temperature)
    queue.push(key)
    (3 * loss).backward()
    assert loss.item() == pytest.approx(F.cross_entropy(expected, target).item(), rel=1e-6)
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(given[1].grad, given[0].grad, rtol=1e-5, atol=2e-6)
    assert loss.dtype == logits.dtype == torch.float32
    assert not logits.requires_grad
    with torch.no_grad():
        assert contrast_loss(given[1], key, queue, temperature)[0].isfinite()


@pytest.mark.parametrize("temperature", [0.001, 0.07])
@pytest.mark.parametrize("own", ["near", "far"])
def test_a_queue_of_several_parts_gives_what_double_precision_gives(temperature: float, own: str) -> None:
    """Where the largest logit comes with a later part, too, or is so large that its exponential is none."""
    torch.manual_seed(1)
    queue, query = Queue(8, 2 * KEYS_AT_ONCE + 100), F.normalize(torch.randn(4, 8), dim=1).requires_grad_()
    key = query.detach() if own == "near" else -query.detach()
    queue.keys[-1] = query[0].detach()
    exact = query.detach().double().requires_grad_()
    logits = torch.cat([(exact * key).sum(1, keepdim=True), exact @ queue.keys.double().T], dim=1) / temperature
    expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.int64))
    expected.backward()
    loss, found, _ = contrast_loss(query, key, queue, temperature)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), logits.detach(), rtol=1e-5, atol=1e-6 / temperature)
    rounding = 1e-7 / temperature + 1e-3 * exact.grad.abs().max().item()
    torch.testing.assert_close(query.grad.double(), exact.grad, rtol=1e-3, atol=rounding)


def test_default_order_keeps_a_clips_own_key_out_of_its_negatives() -> None:
    views = pair()
    both, each = moco(), moco(enqueue="after_each_pass")
    _, (_, second, _) = both.contrast(views)
    _, (_, second_as_released, _) = each.contrast(views)
    own = both.queue.keys[:6]
    query = F.normalize(both.online(views.right), dim=1)
    assert torch.allclose((query * own).sum(1), second_as_released[range(6), range(1, 7)] * 0.1, atol=1e-5)
    assert not torch.allclose(second[:, 1:7], second_as_released[:, 1:7])
    torch.testing.assert_close(both.queue.keys, each.queue.keys)


def test_a_queue_that_is_no_multiple_of_the_batch_wraps_around() -> None:
    queue, rows = Queue(4, 10), F.normalize(torch.randn(28, 4), dim=1)
    for part in rows.split(4):
        queue.push(part)
    assert queue.place == 8
    torch.testing.assert_close(queue.keys, torch.cat([rows[20:28], rows[18:20]]))
    queue.push(F.normalize(torch.randn(25, 4), dim=1))
    assert queue.place == 8, "of more keys than it has room for it takes the newest"


def test_the_twin_follows_parameters_and_counts_its_own_batches() -> None:
    network = Small()
    key_encoder = MomentumEncoder(network, 0.75)
    start = key_encoder.network.conv.weight.clone()
    with torch.no_grad():
        network.conv.weight += 1
        network.bn.running_mean += 5
    key_encoder.update(network)
    torch.testing.assert_close(key_encoder.network.conv.weight, start + 0.25)
    assert key_encoder.network.bn.running_mean.abs().max() == 0


def test_without_queue_the_other_keys_of_the_batch_are_the_negatives() -> None:
    query, keys = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(4, 8), dim=1)
    logits, own = batch_logits(query, keys, 0.5)
    torch.testing.assert_close(logits, query @ keys.T / 0.5)
    assert own.tolist() == [0, 1, 2, 3]
    method = moco(queue=0)
    assert [tuple(logits.shape) for _, logits, _ in method.contrast(pair())] == [(6, 6), (6, 6)]


def test_momentum_zero_keys_are_the_networks_own_without_gradient() -> None:
    method, views = moco(queue=0, momentum=0.0), pair()
    assert method.key_encoder is None
    left, right = (F.normalize(method.online(view), dim=1) for view in views)
    (loss, first, own), (_, second, _) = method.contrast(views)
    torch.testing.assert_close(first, left @ right.T / 0.1)
    torch.testing.assert_close(second, right @ left.T / 0.1)
    method.zero_grad()
    loss.backward()
    grad = method.online.head[-1].weight.grad.clone()
    method.zero_grad()
    F.cross_entropy(F.normalize(method.online(views.left), dim=1) @ right.detach().T / 0.1, own).backward()
    torch.testing.assert_close(grad, method.online.head[-1].weight.grad)
    one_way = moco(queue=0, momentum=0.0, symmetric=False).contrast(views)
    assert len(one_way) == 1
    torch.testing.assert_close(one_way[0][1], first)


def test_one_direction_alone() -> None:
    one, both = moco(symmetric=False), moco()
    torch.testing.assert_close(one.contrast(pair())[0][1], both.contrast(pair())[0][1])
    assert len(one.contrast(pair())) == 1
    assert one.queue.place == 12
    assert both.queue.place == 12


def test_permuting_the_batch_permutes_the_logits() -> None:
    views, order = pair(), torch.tensor([3, 0, 5, 1, 4, 2])
    plain, permuted = moco(), moco()
    _, first, _ = plain.contrast(views)[0]
    _, again, _ = permuted.contrast(Pair(*(view[order] for view in views)))[0]
    torch.testing.assert_close(again, first[order], rtol=1e-4, atol=1e-5)


def test_heads() -> None:
    for head, layers in (("linear", 1), ("mlp", 2), ("mlp_bn", 2)):
        method = moco(head=head, hidden=12)
        assert sum(isinstance(layer, nn.Linear) for layer in method.online.head) == layers
        assert method.online(torch.randn(4, 3, 4, 12, 12)).shape == (4, 16)
    last = moco(head="mlp").online.head[-1]
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert last.bias.abs().max() == 0


# -- two processes against one


def test_two_processes_agree_and_equal_one_without_batch_statistics(tmp_path: Path) -> None:
    in_two_processes(_compare_rank, tmp_path, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for shuffled in ("True", "False"):
        torch.testing.assert_close(ranks[0][shuffled]["keys"], ranks[1][shuffled]["keys"])
    method = moco().eval()  # frozen statistics
    views = pair(8)
    loss = method(views).loss
    torch.testing.assert_close((ranks[0]["True"]["loss"] + ranks[1]["True"]["loss"]) / 2, loss.detach())
    torch.testing.assert_close(ranks[0]["False"]["keys"], method.queue.keys)
    torch.testing.assert_close(ranks[0]["True"]["keys"], method.queue.keys)
    in_batch = moco(queue=0).eval()
    whole = in_batch(views).loss
    torch.testing.assert_close((ranks[0]["batch"] + ranks[1]["batch"]) / 2, whole.detach())


def _compare_rank(rank: int, folder: str) -> None:
    found: dict = {}
    views = Pair(*(view.chunk(2)[rank] for view in pair(8)))
    for shuffle in (True, False):
        method = moco(shuffle_bn=shuffle).eval()
        loss = method(views).loss.detach()
        found[str(shuffle)] = {"loss": loss, "keys": method.queue.keys}
    found["batch"] = moco(queue=0).eval()(views).loss.detach()
    torch.save(found, f"{folder}/{rank}.pt")
