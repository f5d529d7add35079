from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import fill, golden
from tests.engine.test_loop import OPTIONS
from tests.methods.test_moco import Small, in_two_processes
from vidssl.augment.motion import frame_difference
from vidssl.backbones.blocks import BACKBONES
from vidssl.clips import Batch
from vidssl.data.sampling import frame_numbers
from vidssl.engine import distributed
from vidssl.engine.log import Log
from vidssl.engine.loop import Session, Trainer, TrainerOptions
from vidssl.engine.optim import SCHEDULES
from vidssl.methods import dclr as module
from vidssl.methods.contrast import Queue, across_ranks, multi_positive_nce
from vidssl.methods.dclr import (
    DCLR,
    Attention,
    DecoupledContrastOptions,
    Decoupler,
    Windows,
    activation,
    average,
    weighted_average,
)
from vidssl.registry import ConfigError

SMALL = DecoupledContrastOptions(
    dim=16,
    head="mlp",
    hidden=None,
    head_std=None,
    queue=24,
    topk=3,
    fill_steps=0,
    momentum=0.9,
    temperature=0.1,
    shuffle_bn=True,
)
SWITCHES = {
    "shuffle_maps": True, "static_registered": False, "first_difference": "wrap", "dynamic_positive": "other",
    "static_as_negative": False, "align": "constant", "align_weight": 0.1,
}  # fmt: skip


def options(**changes: object) -> DecoupledContrastOptions:
    return DecoupledContrastOptions(**{**vars(SMALL), **changes})


def dclr(backbone: nn.Module | None = None, contrast: DecoupledContrastOptions = SMALL, **changes: object) -> DCLR:
    torch.manual_seed(0)
    return DCLR(backbone or Small(), nn.Identity(), contrast=contrast, **{**SWITCHES, **changes})


def windows(batch: int = 6, seed: int = 0) -> Windows:
    torch.manual_seed(seed)
    left, right = torch.randn(2, batch, 3, 4, 12, 12)
    return Windows(left, right, *torch.randn(2, batch, 3, 1, 12, 12))


# -- golden: defaults of SWITCHES, unless a test names others

HEADS = {"video": "vv", "video_static": "vs", "video_motion": "vd", "static": "sv", "motion": "dv"}
QUEUES = ("vv", "vs", "vd", "sv", "dv", "rs", "rd")
ARCHITECTURES = {"r2plus1d_18": "r2plus1d10", "r3d_18": "r3d18"}


def close(found: Tensor, expected: np.ndarray, rtol: float, atol: float = 0) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=rtol, atol=atol)


def from_file(file: dict[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(file[name])


def official_name(key: str) -> str:
    """Name in the released encoder of a tensor of ours."""
    if key.startswith("backbone."):
        return key.removeprefix("backbone.")
    _, name, rest = key.split(".", 2)
    return f"f{HEADS[name]}.{rest}"


def load(network: Decoupler, prefix: str) -> None:
    state = network.state_dict()
    network.load_state_dict({key: fill(prefix + official_name(key), value.shape) for key, value in state.items()})


def clip(seed: int, b: int, t: int, s: int) -> Tensor:
    """The recipe of golden/dclr/README.md."""
    draw = np.random.RandomState(seed)
    coarse, fine = draw.standard_normal((b, 3, t, 7, 7)), draw.standard_normal((b, 3, t, s, s))
    return torch.from_numpy((coarse.repeat(s // 7, 3).repeat(s // 7, 4) + 0.25 * fine).astype(np.float32))


def golden_windows(seed: int, b: int, t: int, s: int) -> Windows:
    return Windows(clip(seed, b, t, s), clip(seed + 1, b, t, s), clip(seed + 2, b, 1, s), clip(seed + 3, b, 1, s))


def test_golden_views() -> None:
    file = golden("dclr/views.npz")
    raw = np.concatenate([file["raw_q_u8"], file["raw_k_u8"]])

    class Draws:
        """The file's places: windows at frames 0 and 32, and its still frame."""

        def choice(self, places: int, count: int, replace: bool) -> np.ndarray:
            return np.array([0, 32])

        def integers(self, span: int) -> int:
            assert span == 32
            return int(file["static_idx"])

    numbers = frame_numbers(dclr().plan, len(raw), 16, 2, Draws())
    batch = Batch(torch.from_numpy(raw[numbers]).permute(0, 4, 1, 2, 3)[None], *[torch.zeros(1)] * 3)
    for name, found in zip(("rgb_q", "rgb_k", "static_q", "static_k"), dclr().windows(batch), strict=True):
        np.testing.assert_array_equal(found.expand(1, 3, 16, 12, 10)[0].numpy(), file[name])
    network = dclr().online
    for video, still, side in (("clip0", "clip2", "q"), ("clip1", "clip3", "k")):
        video, still = from_file(file, video), from_file(file, still)
        np.testing.assert_array_equal(frame_difference(video, "wrap").numpy(), file[f"res_{side}"])
        streams = network.streams(video, still).unflatten(0, (3, 2)).transpose(0, 1)
        np.testing.assert_array_equal(streams.numpy(), file[side])


def test_golden_decouple() -> None:
    file = golden("dclr/decouple.npz")
    shape = tuple(file["full_shape"])
    full = np.random.RandomState(int(file["full_seed"])).standard_normal(shape).clip(0).astype(np.float32)
    for prefix, features in (("", from_file(file, "features")), ("full_", torch.from_numpy(full))):
        features.requires_grad_()
        video, static, motion = features.unbind(dim=1)
        maps = {
            name: activation(feature).detach() for name, feature in zip("vsd", (video, static, motion), strict=True)
        }
        for name, feature in zip("vsd", (video, static, motion), strict=True):
            close(maps[name], file[f"{prefix}map_{name}"], 1e-5)
            close(average(feature), file[f"{prefix}pool_{name}"], 1e-5)
        by_static, by_motion = weighted_average(video, maps["s"]), weighted_average(video, maps["d"])
        close(by_static, file[f"{prefix}pool_v_static"], 1e-5)
        close(by_motion, file[f"{prefix}pool_v_dynamic"], 1e-5)
        for name in ("vs", "vd"):
            close(weighted_average(video, torch.ones_like(maps["v"])), file[f"{prefix}nomap_{name}"], 1e-5)
        alignment = dclr().alignment(maps["v"], Attention(maps["v"], maps["s"], maps["d"], torch.empty(0)))
        close(alignment, file[f"{prefix}align"], 1e-5)
        if not prefix:
            ((by_static + 2 * by_motion) * from_file(file, "grad_weight")).sum().backward()
            close(features.grad, file["grad_features"], 1e-5)


def test_golden_losses() -> None:
    file = golden("dclr/losses.npz")
    names = tuple(HEADS.values())
    contrast = options(topk=int(file["topk"]), temperature=float(file["T"]), queue=32)
    method = dclr(contrast=contrast)
    method.queue.keys.copy_(torch.stack([from_file(file, f"queue_{name}").T for name in QUEUES], dim=1))
    queries = torch.stack([from_file(file, f"q{name}") for name in names], dim=1).requires_grad_()
    keys = torch.stack([from_file(file, f"k{name}") for name in (*names, "rsv", "rdv")], dim=1)
    search = torch.stack([from_file(file, "qrsv"), from_file(file, "qrdv")], dim=1)
    logits, positives = method.logits(queries, keys, search), method.positives(search)
    losses = multi_positive_nce(logits, positives)
    similarity = method.similarity(search)
    for i, name in enumerate(("vs", "vd")):
        close(similarity[:, i], file[f"similarity_{name}"], 1e-5, 1e-6)
    for i, (name, labels) in enumerate(zip(names, ("vv", "vs", "vd", "vs", "vd"), strict=True)):
        close(logits[:, i], file[f"logits_{name}"], 1e-5, 1e-6)
        np.testing.assert_array_equal(positives[:, i].float().numpy(), file[f"labels_{labels}"])
        close(losses[i], file["loss_vv" if name == "vv" else f"loss_{name}_only"], 1e-5, 1e-6)
    close(losses.sum(), file["loss_nce"], 1e-5, 1e-6)
    losses.sum().backward()
    for i, name in enumerate(names):
        close(queries.grad[:, i], file[f"grad_q{name}"], 1e-5, 1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_golden_encoder(architecture: str) -> None:
    file = golden(f"dclr/encoder_{architecture}_eval.npz")
    network = Decoupler(BACKBONES.build({"name": ARCHITECTURES[architecture]}), options(dim=128), "wrap").eval()
    load(network, "")
    b, _, _, t, s, _ = file["shape"]
    left, _, left_still, _ = golden_windows(int(file["seed"]), b, t, s)
    streams = network.streams(left, left_still).double()
    close(streams.sum(), file["input_sum"], 1e-5)
    close(streams.abs().sum(), file["input_abs_sum"], 1e-5)
    raw: dict[str, Tensor] = {}
    for name, layers in network.heads.items():
        layers.register_forward_hook(lambda _, __, out, name=name: raw.__setitem__(HEADS[name], out))
    seen = network.attend(left, left_still)
    for name, found in zip("vsd", seen, strict=False):
        close(found, file[f"map_{name}"], 1e-4, 2e-5)
    for i, name in enumerate(("sv", "dv")):
        close(raw[name], file[f"raw_{name}"], 1e-4, 2e-5)
        close(seen.search[:, i], F.normalize(from_file(file, f"raw_{name}")).numpy(), 1e-4, 2e-5)
    flat = torch.ones_like(seen.static)
    for prefix, maps in (("with_maps", (seen.static, seen.motion)), ("no_maps", (flat, flat))):
        network(left, left_still, *maps)
        for name in HEADS.values():
            close(raw[name], file[f"{prefix}_{name}"], 1e-4, 2e-5)


def golden_method(file: dict[str, np.ndarray], place: int, **changes: object) -> DCLR:
    contrast = options(
        dim=int(file.get("cfg_dim", 128)), queue=int(file["cfg_K"]), topk=int(file["cfg_topk"]),
        momentum=float(file.get("cfg_m", 0.999)), temperature=float(file.get("cfg_T", 0.07)),
        fill_steps=int(file.get("cfg_warmup", 0)),
    )  # fmt: skip
    method = dclr(BACKBONES.build({"name": ARCHITECTURES[str(file["cfg_arch"])]}), contrast, **changes)
    load(method.online, "encoder_q.")
    load(method.key_encoder.network, "encoder_k.")
    queues = [F.normalize(fill(f"queue_{name}", (contrast.dim, contrast.queue)), dim=0).T for name in QUEUES]
    method.queue.keys.copy_(torch.stack(queues, dim=1))
    method.queue.place.fill_(place)
    return method.train()


def record(method: DCLR, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What the parts of a step answer, in the order of its calls."""
    seen: dict[str, list] = {}
    for name in ("attend", "keys", "logits", "positives", "similarity", "alignment"):
        part = getattr(method, name)

        def call(*inputs: object, name: str = name, part=part) -> object:
            seen.setdefault(name, []).append(part(*inputs))
            return seen[name][-1]

        monkeypatch.setattr(method, name, call)
    method.online.register_forward_hook(lambda _, __, out: seen.setdefault("queries", []).append(out[0]))
    return seen


def assert_golden_step(name: str, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    file = golden(f"dclr/moco_view_{name}.npz")
    method = golden_method(file, int(file["queue_ptr_before"][0]), **changes)
    views = golden_windows(int(file["cfg_seed"]), *file["cfg_B_T_S"])
    inputs = [method.online.streams(views[side], views[2 + side]).double() for side in range(2)]
    close(torch.stack([total for x in inputs for total in (x.sum(), x.abs().sum())]), file["input_sums"], 1e-6)
    monkeypatch.setattr(distributed, "shared_permutation", lambda count: from_file(file, "perm"))
    seen = record(method, monkeypatch)
    out = method(views)
    out.loss.backward()

    embedding, logit = {"rtol": 1e-4, "atol": 1e-5}, {"rtol": 1e-4, "atol": 5e-5}
    for side, found in zip("qk", seen["attend"], strict=True):
        for stream, part in zip("vsd", found, strict=False):
            close(part, file[f"{side}{stream}c"], 1e-5)
        for i, stream in enumerate(("rsv", "rdv")):
            close(found.search[:, i], file[f"{side}{stream}"], **embedding)
    labels = {"vv": "vv", "vs": "vs", "vd": "vd", "sv": "vs", "dv": "vd"}
    losses = multi_positive_nce(seen["logits"][0], seen["positives"][0])
    for i, head in enumerate(HEADS.values()):
        close(seen["queries"][0][:, i], file[f"q{head}"], **embedding)
        close(seen["keys"][0][:, i], file[f"k{head}"], **embedding)
        close(seen["logits"][0][:, i], file[f"logits_{head}"], **logit)
        np.testing.assert_array_equal(seen["positives"][0][:, i].float().numpy(), file[f"labels_{labels[head]}"])
        close(losses[i], file["loss_vv" if head == "vv" else f"loss_{head}_only"], **embedding)
    for i, stream in enumerate(("vs", "vd")):
        close(seen["similarity"][0][:, i], file[f"similarity_{stream}"], **embedding)
    close(out.loss, file["loss_nce"], **embedding)
    for scalar, key in (("video", "loss_vv"), ("static", "loss_vs"), ("motion", "loss_vd")):
        close(out.scalars[scalar], file[key], **embedding)
    left, right = seen["attend"]
    for side, found in (("q", left), ("qk", right)):  # of the right window the release may have meant, too
        alignment = (
            (left.video - (found.static + found.motion)).square().mean() if side == "qk" else seen["alignment"][0]
        )
        close(alignment, file[f"align_{side}"], 1e-5)
        close(out.loss + 0.1 * alignment, file[f"loss_total_{side}"], 1e-5)
    close(out.scalars["align"], file["align_q"], 1e-5)
    for i, queue in enumerate(QUEUES):
        close(method.queue.keys[:, i].T, file[f"queue_{queue}_after"], **embedding)
    assert method.queue.place == int(file["queue_ptr_after"][0])
    assert_states(method, file, "", "_after", dict.fromkeys(("",), (1e-4, 1e-5)))
    assert_gradients(method, file)


def assert_states(
    method: DCLR, file: dict[str, np.ndarray], prefix: str, suffix: str, tolerances: dict[str, tuple[float, float]]
) -> None:
    """tolerances: end of a name -> rtol, atol; the first that fits."""
    checked = 0
    for part, network in (("encoder_q.", method.online), ("encoder_k.", method.key_encoder.network)):
        for key, value in network.state_dict().items():
            name = f"{prefix}{part}{official_name(key)}{suffix}"
            if name in file:
                rtol, atol = next(found for end, found in tolerances.items() if name.endswith(end + suffix))
                close(value, file[name], *((0, 0) if key.endswith("tracked") else (rtol, atol)))
                checked += 1
    wanted = [
        key for key in file if key.startswith((f"{prefix}encoder_q", f"{prefix}encoder_k")) and key.endswith(suffix)
    ]
    assert checked == len(wanted) > 0


def assert_gradients(method: DCLR, file: dict[str, np.ndarray]) -> None:
    gradients = {official_name(key): parameter.grad for key, parameter in method.online.named_parameters()}
    names = [str(name).removeprefix("encoder_q.") for name in file["grad_names"]]
    close(torch.stack([gradients[name].norm() for name in names]), file["grad_norms_encoder_q"], 5e-3)
    assert set(names) == set(gradients)
    for key, expected in file.items():
        if key.startswith("grad_encoder_q."):
            name = key.removeprefix("grad_encoder_q.")
            tolerance = 1e-2 if name == "stem.1.weight" else 1e-4
            close(gradients[name], expected, 0, tolerance * np.abs(expected).max())


def test_golden_step_small(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_golden_step("small", monkeypatch)


def test_golden_step_small_perm_with_maps_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """method.shuffle_maps=false, as released."""
    assert_golden_step("small_perm", monkeypatch, shuffle_maps=False)


@pytest.mark.slow
def test_golden_step_56(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_golden_step("56", monkeypatch)


@pytest.mark.slow
def test_golden_step_full(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_golden_step("full", monkeypatch)


def test_golden_training_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """method.contrast.fill_steps=2: the weights stay in the first two steps."""
    file = golden("dclr/moco_view_steps.npz")
    method = golden_method(file, int(file["cfg_ptr"]))
    seen = record(method, monkeypatch)
    optimizer = torch.optim.SGD(method.online.parameters(), lr=float(file["cfg_lr"]), momentum=0.9, weight_decay=1e-4)
    for step in range(4):
        out = method(golden_windows(int(file["cfg_seed"]) + 10 * step, *file["cfg_B_T_S"]))
        assert out.update == (step >= 2) == out.loss.requires_grad
        rtol = 5e-4 if step == 3 else 1e-5
        for scalar, key in (("video", "loss_vv"), ("static", "loss_vs"), ("motion", "loss_vd"), ("align", "align_q")):
            close(out.scalars[scalar], file[key][step], rtol)
        close(out.loss, file["loss_nce"][step], rtol)
        left, right = seen["attend"][-2:]
        close((left.video - (right.static + right.motion)).square().mean(), file["align_qk"][step], rtol)
        close(100 * out.scalars["contrast_top1"], file["acc1"][step], 1e-6)
        close(100 * out.scalars["contrast_top5"], file["acc5"][step], 1e-6)
        assert method.queue.place == file["queue_ptr"][step]
        if out.update:
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
    close(method.queue.keys[:, 0].T, file["final_queue_vv"], 0, 1e-5)
    close(method.queue.keys[:, 5].T, file["final_queue_rs"], 0, 1e-5)
    tolerances = {"encoder_q.stem.1.weight": (0, 2e-3), "encoder_q.layer4.0.conv2.1.bias": (0, 1e-4), "": (0, 1e-5)}
    assert_states(method, file, "final_", "", tolerances)


# -- laws


def test_the_probability_of_all_positives_counts() -> None:
    positive = torch.zeros(4, 30, dtype=torch.bool)
    positive[:, :6] = True
    assert multi_positive_nce(torch.ones(4, 30), positive).item() == pytest.approx(math.log(30 / 6), rel=1e-5)
    logits = 1000 * torch.randn(4, 2, 30, dtype=torch.bfloat16)
    one = F.one_hot(torch.arange(8).view(4, 2), 30).bool()
    expected = F.cross_entropy(logits.float().transpose(1, 2), torch.arange(8).view(4, 2), reduction="none").mean(dim=0)
    torch.testing.assert_close(multi_positive_nce(logits, one), expected)
    assert multi_positive_nce(logits, torch.ones_like(one)).abs().max() < 1e-3


def test_all_keys_of_a_clip_share_a_place_in_the_queue() -> None:
    queue, rows = Queue(4, 10, kinds=7), F.normalize(torch.randn(12, 7, 4), dim=-1)
    torch.testing.assert_close(queue.keys.norm(dim=-1), torch.ones(10, 7))
    for part in rows.split(4):
        queue.push(part)
    assert queue.place == 2
    assert torch.equal(queue.keys, torch.cat([rows[10:], rows[2:10]]))


def test_views_are_the_clips_and_single_frames() -> None:
    clips = torch.randint(0, 256, (3, 4, 3, 5, 8, 8), dtype=torch.uint8)
    clips[:, 2:] = clips[:, 2:, :, :1]  # stand still, as the loader gives them
    batch = Batch(clips.clone(), torch.zeros(3, 4, 4), torch.zeros(3), torch.arange(3))
    views = dclr().views(batch)
    for i, view in enumerate(views):
        assert torch.equal(view.expand(3, 3, 5, 8, 8), clips[:, i].float() / 255)
    assert torch.equal(batch.clips, clips)


def test_registered_stills_are_the_same_frame_of_both_videos() -> None:
    method = dclr(static_registered=True)
    assert len(method.plan.views) == 2
    clips = torch.randint(0, 256, (20, 2, 3, 5, 8, 8), dtype=torch.uint8)
    batch = Batch(clips, torch.zeros(20, 2, 4), torch.zeros(20), torch.arange(20))
    views = method.views(batch)
    matches = [(still == clip).all(dim=(1, 3, 4)) for still, clip in zip(views[2:], views[:2], strict=True)]
    assert torch.equal(matches[0], matches[1])
    assert (matches[0].sum(dim=1) == 1).all()
    assert matches[0].any(dim=0).all(), "each frame of the clip is drawn once in a while"


def test_pictures_show_the_three_streams() -> None:
    clips = torch.randint(0, 256, (3, 4, 3, 5, 8, 8), dtype=torch.uint8)
    shown = dclr().pictures(Batch(clips, torch.zeros(3, 4, 4), torch.zeros(3), torch.arange(3)))
    assert set(shown) == {"video", "static", "motion"}
    assert all(
        picture.shape == (3, 3, 5, 8, 8) and 0 <= picture.min() < picture.max() <= 1 for picture in shown.values()
    )


def test_a_flat_map_is_plain_pooling_and_an_empty_one_breaks_nothing() -> None:
    feature = torch.rand(2, 8, 2, 3, 3)
    torch.testing.assert_close(weighted_average(feature, torch.full((2, 1, 2, 3, 3), 7.0)), average(feature))
    assert weighted_average(feature, torch.zeros(2, 1, 2, 3, 3)).abs().max() == 0


def keys_of(method: DCLR, views: Windows) -> Tensor:
    return method.keys(views.right, views.right_still, method.attend(views.right, views.right_still))


def test_shuffled_with_their_maps_clips_give_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    order = torch.tensor([2, 5, 0, 3, 1, 4])
    monkeypatch.setattr(distributed, "shared_permutation", lambda count: order)
    plain = keys_of(dclr(), windows())
    without = keys_of(dclr(contrast=options(shuffle_bn=False)), windows())
    assert torch.equal(plain, without), "one process need not shuffle"
    monkeypatch.setattr(module, "across_ranks", partial(across_ranks, alone=True))
    torch.testing.assert_close(keys_of(dclr(), windows()), plain)
    monkeypatch.undo()
    monkeypatch.setattr(distributed, "shared_permutation", lambda count: order)
    left_behind = keys_of(dclr(shuffle_maps=False), windows())
    assert ((left_behind - plain).abs().amax(dim=(0, 2)) > 1e-4).tolist() == [False, True, True] + 4 * [False]


def test_dynamic_positive_same_attracts_the_motion_of_its_own_window() -> None:
    queries, keys, search = (F.normalize(torch.randn(4, n, 16), dim=-1) for n in (5, 7, 2))
    other, same = dclr(), dclr(dynamic_positive="same")
    logits, changed = (0.1 * method.logits(queries, keys, search) for method in (other, same))
    torch.testing.assert_close(changed[:, 2, 0], (queries[:, 2] * search[:, 1]).sum(dim=1))
    torch.testing.assert_close(changed[:, 2, 1:], queries[:, 2] @ same.queue.keys[:, 6].T)
    torch.testing.assert_close(logits[:, 2, 0], (queries[:, 2] * keys[:, 4]).sum(dim=1))
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(changed[:, rest], logits[:, rest])


def test_static_as_negative_adds_what_must_repel_to_the_weighted_videos() -> None:
    queries, keys, search = (F.normalize(torch.randn(4, n, 16), dim=-1) for n in (5, 7, 2))
    queries.requires_grad_()
    plain, method = dclr(), dclr(static_as_negative=True)
    logits, positives = method.logits(queries, keys, search), method.positives(search)
    assert torch.equal(logits[..., :-1], plain.logits(queries, keys, search))
    assert torch.equal(positives[..., :-1], plain.positives(search))
    assert not positives[..., -1].any()
    torch.testing.assert_close(0.1 * logits[:, 1, -1], (queries[:, 1] * keys[:, 4]).sum(dim=1))
    torch.testing.assert_close(0.1 * logits[:, 2, -1], (queries[:, 2] * keys[:, 3]).sum(dim=1))
    assert (logits[:, [0, 3, 4], -1] == -torch.inf).all()
    losses = multi_positive_nce(logits, positives)
    before = multi_positive_nce(plain.logits(queries, keys, search), plain.positives(search))
    assert (losses - before > 1e-6).tolist() == [False, True, True, False, False]
    losses.sum().backward()
    assert queries.grad.isfinite().all()


def test_positives_are_the_partner_and_the_most_alike() -> None:
    method = dclr()
    positives = method.positives(method.queue.keys[[5, 9], 5:])
    assert positives[..., 0].all()
    assert (positives.sum(dim=-1) == 4).all()
    assert positives[0, :, 1 + 5].all(), "a past clip is most alike itself"
    assert positives[1, :, 1 + 9].all()
    none = dclr(contrast=options(topk=0)).positives(method.queue.keys[[5, 9], 5:])
    assert none.sum() == 2 * 5


def test_alignment_is_logged_left_out_or_trained() -> None:
    losses = {}
    for align in ("constant", "off", "grad"):
        method = dclr(align=align, align_weight=1000.0)
        out = method(windows())
        assert ("align" in out.scalars) == (align != "off")
        out.loss.backward()
        losses[align] = (out.loss.item(), method.backbone.conv.weight.grad)
    assert losses["constant"][0] == losses["off"][0] < losses["grad"][0]
    assert torch.equal(losses["constant"][1], losses["off"][1])
    assert not torch.allclose(losses["grad"][1], losses["off"][1])
    flat = torch.ones(2, 1, 1, 2, 2)
    assert method.alignment(3 * flat, Attention(flat, 5 * flat, 7 * flat, torch.empty(0))) == 0


def test_half_precision_ends_in_float32_units() -> None:
    method = dclr().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = method(windows())
    out.loss.backward()
    assert out.loss.dtype == method.queue.keys.dtype == torch.float32
    torch.testing.assert_close(method.queue.keys.norm(dim=-1), torch.ones(24, 7))
    assert out.loss.item() == pytest.approx(dclr().train()(windows()).loss.item(), rel=0.05)
    assert all(parameter.grad is not None for parameter in method.online.parameters())


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.contrast.queue=3: 3 positives .*method.contrast.topk.* 4 or more"):
        dclr(contrast=options(queue=3))
    with pytest.raises(ConfigError, match=r"method.shuffle_maps=false: .*method.contrast.shuffle_bn=false .*true"):
        dclr(contrast=options(shuffle_bn=False), shuffle_maps=False)
    assert dclr().problems(2, 1, 112) == []
    (told,) = dclr().problems(1, 2, 112)
    assert told.startswith("clip_frames=1: ")


# -- the start that only fills the queue


def test_filling_moves_all_but_the_weights_exactly_as_a_step_without_optimizer() -> None:
    filling, whole = dclr(contrast=options(fill_steps=2)).train(), dclr().train()
    for step in range(3):
        views = windows(seed=step)
        out, expected = filling(views), whole(views)
        assert torch.equal(out.loss, expected.loss)
        assert out.update == out.loss.requires_grad == (step == 2)
        assert expected.update
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(filling.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_filling_continues_from_a_saved_state() -> None:
    first = dclr(contrast=options(fill_steps=3)).train()
    found = [first(windows(seed=step)).update for step in range(2)]
    second = dclr(contrast=options(fill_steps=3)).train()
    second.load_state_dict(first.state_dict())
    assert found + [second(windows(seed=step)).update for step in range(2, 5)] == [False] * 3 + [True] * 2
    again = dclr(contrast=options(fill_steps=3)).train()
    again.load_state_dict(second.state_dict())
    assert again(windows()).update


class Loader:
    """Four batches an epoch."""

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, skip: int = 0):
        for step in range(skip, 4):
            torch.manual_seed(10 * epoch + step)
            clips = torch.randint(0, 256, (4, 4, 3, 4, 12, 12), dtype=torch.uint8)
            yield Batch(clips, torch.zeros(4, 4, 4), torch.zeros(4, dtype=torch.int64), torch.arange(4))


def trained(folder: Path, steps: int, **changes: object) -> DCLR:
    folder.mkdir(parents=True, exist_ok=True)
    method = dclr(contrast=options(fill_steps=2))
    optimizer = torch.optim.SGD(method.online.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = SCHEDULES.build({"name": "constant", "warmup_epochs": 0, "warmup_from": 0.0, "every": "step"})
    Trainer(
        method, optimizer, schedule,
        Session("pretrain", Log(folder), {"seed": 5}, 5, torch.device("cpu"), "fp32", folder / "last.pt"),
        TrainerOptions(**{**vars(OPTIONS), **changes}), epochs=2, max_steps=steps,
    ).fit(Loader())  # fmt: skip
    return method


def weights(method: DCLR) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in method.online.parameters()])


def test_the_trainer_leaves_the_weights_while_the_queue_fills_and_resumes_in_between(tmp_path: Path) -> None:
    before = weights(dclr())
    assert torch.equal(weights(trained(tmp_path / "filled", 2)), before)
    straight = trained(tmp_path / "straight", 6)
    assert not torch.equal(weights(straight), before)
    trained(tmp_path / "parts", 1)
    trained(tmp_path / "parts", 3)
    resumed = trained(tmp_path / "parts", 6)
    for key, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_parts_of_an_accumulated_batch_count_as_batches(tmp_path: Path) -> None:
    before = weights(dclr())
    assert torch.equal(weights(trained(tmp_path / "one", 1, accumulate=2)), before)
    assert not torch.equal(weights(trained(tmp_path / "two", 2, accumulate=2)), before)


# -- two processes against one


def test_two_processes_agree_and_equal_one_without_batch_statistics(tmp_path: Path) -> None:
    in_two_processes(_compare_rank, tmp_path, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for shuffled in ("True", "False"):
        method = dclr().eval()  # frozen statistics
        losses = [method(windows(8, seed)).loss.item() for seed in range(2)]
        for rank in range(2):
            torch.testing.assert_close(ranks[rank][shuffled]["keys"], method.queue.keys)
            assert ranks[rank][shuffled]["place"] == method.queue.place
        mean = [sum(pair) / 2 for pair in zip(*(rank[shuffled]["losses"] for rank in ranks), strict=True)]
        assert mean == pytest.approx(losses, rel=1e-5)


def _compare_rank(rank: int, folder: str) -> None:
    found: dict = {}
    for shuffle in (True, False):
        method = dclr(contrast=options(shuffle_bn=shuffle)).eval()
        parts = [Windows(*(view.chunk(2)[rank] for view in windows(8, seed))) for seed in range(2)]
        losses = [method(part).loss.item() for part in parts]
        found[str(shuffle)] = {"losses": losses, "keys": method.queue.keys, "place": method.queue.place}
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_fill_and_train_alike(accumulate: int, tmp_path: Path) -> None:
    in_two_processes(_train_rank, tmp_path, accumulate, str(tmp_path))
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    before = weights(dclr())
    for filled, end in ((state["filled"], state["end"]) for state in states):
        assert torch.equal(filled, before)
        assert not torch.equal(end["online.backbone.conv.weight"], dclr().backbone.conv.weight)
    for key, value in states[0]["end"].items():
        if "running" not in key:  # each rank's own since rank 0's were copied
            torch.testing.assert_close(states[1]["end"][key], value, rtol=0, atol=0, msg=key)


def _train_rank(rank: int, accumulate: int, folder: str) -> None:
    home = Path(folder) / str(rank)
    filled = weights(trained(home / "filled", 2 // accumulate, accumulate=accumulate))
    end = trained(home / "end", 4, accumulate=accumulate).state_dict()
    torch.save({"filled": filled, "end": end}, f"{folder}/{rank}.pt")
