from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import fill, golden
from tests.methods.test_moco import in_two_processes
from vidssl.backbones.blocks import BACKBONES
from vidssl.clips import Batch
from vidssl.data.spatial import Box
from vidssl.methods import fima as module
from vidssl.methods.fima import (
    FIMA,
    Decoder,
    DecoderOptions,
    FIMAContrast,
    FIMAViews,
    cells_of,
    dense_loss,
    distances,
    neighbors,
    pooled,
    positions,
    unit,
)
from vidssl.registry import ConfigError

RELEASED = {  # what every golden file of a step was made with; decoder dropout 0 as its README says
    "local_crop": "independent", "first_difference": "wrap", "motion_color": "augment", "foreground": "both",
    "foreground_quantile": 0.5, "radius": 0.7, "local_weight": 1.0, "dense_weight": 1.0,
}  # fmt: skip
DECODER = DecoderOptions(layers=2, width=512, heads=4, hidden=512, dropout=0.0)
CONTRAST = FIMAContrast(
    dim=128, head="mlp", hidden=1024, queue=64, motion_queue=64, dense_queue=0, momentum=0.999, temperature=0.1,
    dense_temperature=0.1, shuffle_bn=True, enqueue="after_each_pass", gather_negatives=False,
)  # fmt: skip
CLIPS = ("vi_m", "vi_m_l1", "vi_m_l2", "vi_n", "vi_n_l1", "vi_n_l2")


def small(seed: int = 0, **changes: Any) -> FIMA:
    """Options of method.contrast and of method.decoder are recognized by their names."""
    torch.manual_seed(seed)
    contrast = {**vars(CONTRAST), "dim": 16, "hidden": 24, "queue": 50, "motion_queue": 50, "dense_queue": 100}
    decoder = {**vars(DECODER), "width": 32, "hidden": 32}
    options = dict(RELEASED)
    for key, value in changes.items():
        next(part for part in (options, contrast, decoder) if key in part)[key] = value
    backbone = BACKBONES.build({"name": "tiny", "width": 4})
    return FIMA(
        backbone, nn.Identity(), **options, decoder=DecoderOptions(**decoder), contrast=FIMAContrast(**contrast)
    )


# -- golden parts


def test_golden_coordinates() -> None:
    """data/spatial places crops as the release does: first and last pixel, over the frame's size less one."""
    file = golden("fima/coordinates.npz")
    boxes = []
    for side in ("q", "k"):
        rows = [Box(*map(int, row[:4]), mirrored=bool(row[6])).shares(*row[4:6]) for row in file[f"crop_{side}"]]
        np.testing.assert_allclose(rows, file[f"coord_{side}"], rtol=0, atol=1e-6)
        boxes.append(torch.from_numpy(file[f"coord_{side}"]))
    for size in (7, 3):
        found = distances(*boxes, size, size)
        np.testing.assert_allclose(found.numpy(), file[f"dist_{size}x{size}"], rtol=0, atol=1e-5)
        for radius in (0.7, 0.5):
            near = neighbors(*boxes, size, size, radius)
            np.testing.assert_array_equal(near.numpy(), file[f"pos_{size}x{size}_r{radius}"].astype(bool))


@pytest.mark.parametrize("case", ["0", "1", "2", "tie"])
def test_golden_foreground_mask(case: str) -> None:
    file = golden("fima/foreground_mask.npz")
    rgb, motion = (torch.from_numpy(file[f"{kind}_{case}"]) for kind in ("rgb", "diff"))
    activation = rgb.mean(dim=(1, 2)) + motion.mean(dim=(1, 2))
    if case != "tie":
        np.testing.assert_allclose(activation.numpy(), file[f"activation_{case}"], rtol=0, atol=1e-5)
    mask, cells = small().foreground_cells(activation.flatten(1))
    np.testing.assert_array_equal(mask.numpy(), file[f"mask_{case}"].reshape(mask.shape).astype(bool))
    chosen = torch.zeros_like(mask).scatter(1, cells, True)
    assert not (mask & ~chosen).any(), "all of the foreground is among the cells that are decoded"


def test_golden_decoder() -> None:
    file = golden("fima/decoder.npz")
    table = positions(49, 512, torch.device("cpu"))
    np.testing.assert_allclose(table.numpy(), file["pos_table"], rtol=0, atol=1e-5)
    decoder = Decoder(DECODER).eval()
    decoder.load_state_dict(
        {key: filled(f"decoder.{key}", value) for key, value in decoder.state_dict().items()} | {
            "token": torch.from_numpy(file["cls_token"]).flatten()
        }
    )  # fmt: skip
    query, memory = (torch.from_numpy(file[f"{part}_tokens"]).transpose(0, 1) + table for part in ("query", "memory"))
    found = decoder(query, memory)
    np.testing.assert_allclose(found.detach().transpose(0, 1).numpy(), file["out"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("case", ["batch", "queue", "partial", "none"])
def test_golden_dense_loss(case: str) -> None:
    file = {key.removeprefix(f"{case}_"): value for key, value in golden("fima/dense_loss.npz").items()
            if key.startswith(f"{case}_")}  # fmt: skip
    n, c, h, w = file["q"].shape
    query, keys, other = (cells_of(torch.from_numpy(file[part])[:, :, None])[:, None] for part in ("q", "k", "k_other"))
    query.requires_grad_()
    boxes = (torch.from_numpy(file[f"coord_{side}"]) for side in "qk")
    masks = [torch.from_numpy(file[f"mask_{side}"]).flatten(1).bool() for side in "qk"]
    near = neighbors(*boxes, h, w, float(file["pos_ratio"])) & masks[0][:, :, None] & masks[1][:, None]
    np.testing.assert_array_equal(near.numpy(), file["pos"].astype(bool))
    negatives = torch.cat([keys, other]).flatten(0, 2)
    if "queue" in file:
        negatives = torch.cat([negatives, torch.from_numpy(file["queue"]).T])
    loss = dense_loss(query, keys, negatives, near, float(file["temperature"]))
    loss.backward()
    grad = query.grad[:, 0].transpose(1, 2).view(n, c, h, w).numpy()
    if case == "none":
        assert loss.item() == 0.0
        assert np.abs(grad).max() < 1e-6
        return
    assert loss.item() == pytest.approx(float(file["loss64"]), rel=1e-5)
    np.testing.assert_allclose(grad, file["grad_q"], rtol=0, atol=1e-5)
    if "grad_norm" in file:
        assert np.linalg.norm(grad) == pytest.approx(float(file["grad_norm"]), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "ours"), [("i3d", "i3d"), ("r2plus1d", "r2plus1d18"), ("r3d", "r3d18")])
def test_golden_backbones(name: str, ours: str) -> None:
    file = golden("fima/backbones.npz")
    network = BACKBONES.build({"name": ours}).eval()
    network.load_state_dict({key: fill(key, value.shape) for key, value in network.state_dict().items()})
    shape = tuple(file[f"{name}_input_shape"])
    clip = np.random.RandomState(int(file["input_seed"])).uniform(0, 1, size=shape).astype(np.float32)
    features = network(torch.from_numpy(clip))
    np.testing.assert_allclose(features.numpy(), file[f"{name}_features"], rtol=0, atol=1e-4)
    classes = int(file[f"{name}_num_classes"])
    weight, bias = fill("fc.weight", (classes, network.out_channels)), fill("fc.bias", (classes,))
    logits = F.linear(features.mean(dim=(2, 3, 4)), weight, bias)
    found = logits.log_softmax(dim=1) if name == "i3d" else logits
    np.testing.assert_allclose(found.numpy(), file[f"{name}_output"], rtol=0, atol=1e-4)


# -- golden steps


def official(key: str) -> str:
    """The released module's name of a tensor of ours."""
    for ours, theirs in (
        ("online.backbone.", "encoder_q."), ("key_encoder.network.backbone.", "encoder_k."),
        ("online.head.", "projector_dense.net."), ("key_encoder.network.head.", "projector_dense_k.net."),
        ("into.", "embedding1."), ("out_of.", "embedding2."), ("decoder.token", "cls_token"),
        ("decoder.layers.", "transformer_decoder.layers."), (".norm.", ".norm2."), (".attention.", ".multihead_attn."),
        (".feed_forward.0.", ".norm3."), (".feed_forward.1.", ".linear1."), (".feed_forward.4.", ".linear2."),
    ):  # fmt: skip
        key = key.replace(ours, theirs)
    return key


def filled(key: str, value: Tensor) -> Tensor:
    name = official(key)
    shape = (1, 1, *value.shape) if name == "cls_token" else value.shape
    return fill(name, shape).view(value.shape)


FILES = {"step_i3d_ucf101_train": ("i3d", 0), "step_i3d_ucf101_eval": ("i3d", 0),
         "step_r2plus1d_k400_train": ("r2plus1d18", 144)}  # fmt: skip


def from_file(name: str) -> tuple[FIMA, Batch, dict[str, np.ndarray]]:
    """The module of a golden file: method.contrast.enqueue=after_each_pass, and RELEASED."""
    file = golden(f"fima/{name}.npz")
    backbone, dense_queue = FILES[name]
    contrast = FIMAContrast(**{**vars(CONTRAST), "dense_queue": dense_queue})
    method = FIMA(BACKBONES.build({"name": backbone}), nn.Identity(), **RELEASED, decoder=DECODER, contrast=contrast)
    state = {key: filled(key, value) for key, value in method.state_dict().items() if "queue" not in key}
    method.load_state_dict(state, strict=False)
    for queue, key, place in (
        (method.queue, "queue", 62 if dense_queue else 60), (method.motion_queue, "motion_queue", 56),
        (method.dense_queue, "queue_dense", 126),
    ):  # fmt: skip
        if len(queue.keys):
            queue.keys.copy_(F.normalize(fill(key, (128, len(queue.keys))), dim=0).T)
            queue.place.fill_(place)
    inputs = file if f"in_{CLIPS[0]}" in file else golden("fima/step_i3d_ucf101_train.npz")
    repeat = int(file["repeat"])
    clips = torch.stack(
        [torch.from_numpy(inputs[f"in_{clip}"].repeat(repeat, 3).repeat(repeat, 4)) for clip in CLIPS], 1
    )
    boxes = torch.zeros(len(clips), len(CLIPS), 4)
    boxes[:, 0], boxes[:, 3] = torch.from_numpy(file["coord_m"]), torch.from_numpy(file["coord_n"])
    given = Batch(clips.double() * 255, boxes, torch.zeros(0), torch.zeros(0))
    return method.train(mode=not name.endswith("eval")), given, file


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_golden_step_after_each_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, given, file = from_file(name)
    is_eval = name.endswith("eval")
    values, losses, norms = (5e-5, 1e-5, 1e-4) if is_eval else (1e-3, 1e-4, 1e-3)
    keys, instance, dense = [], [], []
    predicted: list[tuple[Tensor, ...]] = []

    def spy(owner: object, attribute: str, seen: list) -> None:
        call = getattr(owner, attribute)
        monkeypatch.setattr(owner, attribute, lambda *given, **named: seen.append(call(*given, **named)) or seen[-1])

    spy(method, "keys", keys)
    spy(method, "predict", predicted)
    spy(module, "contrast_loss", instance)
    spy(module, "dense_loss", dense)
    local, near, masks, tokens = [], [], [], []
    spy(method, "local_logits", local)
    spy(module, "neighbors", near)
    spy(method, "foreground_cells", masks)
    method.into.register_forward_hook(lambda _, given, out: tokens.append(out.detach()))
    out = method(method.views(given))

    def close(found: Tensor, key: str, tolerance: float = values) -> None:
        np.testing.assert_allclose(found.detach().numpy(), file[key], rtol=0, atol=tolerance, err_msg=key)

    def near_to(found: Tensor, key: str, tolerance: float = losses) -> None:
        assert found.item() == pytest.approx(float(file[key]), rel=tolerance), key

    # keys, masks, matches
    for v, found, (mask, _) in zip("mn", keys, masks, strict=True):
        side = math.isqrt(mask.shape[1])
        close(found.whole, f"key_{v}")
        for t in (0, 1):
            close(found.local[:, t], f"key_{v}_l{t + 1}")
        close(found.motion.permute(0, 3, 1, 2).unflatten(3, (side, side)), f"key_{v}_diff_dense")
        close(found.activation.unflatten(1, (side, side)), f"key_{v}_activation")
        np.testing.assert_array_equal(mask.numpy(), file[f"mask_{v}"].reshape(mask.shape).astype(bool))
    matched = near[0] & masks[0][0][:, :, None] & masks[1][0][:, None]
    for t in "12":
        np.testing.assert_array_equal(matched.numpy(), file[f"pos_n{t}"].astype(bool))
        np.testing.assert_array_equal(matched.mT.numpy(), file[f"pos_m{t}"].astype(bool))

    # queries and predictions, the latter for the foreground
    query, step, cells = predicted[0]
    for grid, (v, u) in enumerate(("mn", "nm")):
        close(query[grid], f"query_{v}")
        close(tokens[0].unflatten(0, (2, -1))[grid].mean(dim=2).T, f"query_{v}_tokens_mean")
        for t in (0, 1):
            expected = file[f"pred_{u}{t + 1}"].transpose(0, 2, 1)
            np.testing.assert_allclose(step[grid, :, t].detach().numpy(), expected[:, 0], rtol=0, atol=values)
            places = masks[grid][1].numpy()[:, :, None]
            np.testing.assert_allclose(
                cells[grid, :, t].detach().numpy(), np.take_along_axis(expected[:, 1:], places, 1), rtol=0, atol=values
            )

    # logits and losses
    close(instance[0][1], "logits_1")
    close(instance[1][1], "logits_2")
    logits, target = local[0]
    b = len(query[0])
    for row, (v, t) in enumerate((v, t) for v in "nm" for t in (1, 2)):
        close(released_columns(logits[row * b :][:b], row, b, target[row * b :][:b]), f"logits_local_{v}{t}")
    near_to(dense[0], "loss_dense_1")
    near_to(dense[1], "loss_dense_2")
    np.testing.assert_allclose(dense[0].item(), (file["dense_n1"] + file["dense_n2"]) / 2, rtol=losses)
    np.testing.assert_allclose(dense[1].item(), (file["dense_m1"] + file["dense_m2"]) / 2, rtol=losses)
    for ours, theirs in (("instance", "inst"), ("local", "local"), ("dense", "dense")):
        near_to(out.scalars[f"{ours}_loss"], f"loss_{theirs}")
    near_to(out.loss, "loss_total")

    # queues and weights after it
    queues = [(method.queue, "queue"), (method.motion_queue, "motion_queue")]
    queues += [(method.dense_queue, "queue_dense")] if "queue_dense_after" in file else []
    for (queue, key), place in zip(queues, file["ptr_after"], strict=True):
        close(queue.keys.T, f"{key}_after")
        assert queue.place == place
    state = {official(key): value for key, value in method.state_dict().items()}
    recorded = [key for key in file if key.startswith("after.")]
    assert len(recorded) == 10
    for key in recorded:
        found = state[key.removeprefix("after.")].view(file[key].shape)
        close(found, key, 1e-4 if "running" in key else 1e-6)

    # gradients
    out.loss.backward()
    for group in ("encoder_q", "projector_dense", "embedding1", "embedding2", "transformer_decoder", "cls_token"):
        grads = [p.grad for key, p in method.named_parameters() if official(key).split(".")[0] == group]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        near_to(norm, f"gradnorm_{group}", 5e-3 if group == "encoder_q" and not is_eval else norms)
    close(method.decoder.token.grad.view(1, 1, -1), "grad_cls_token", 1e-4)


def released_columns(logits: Tensor, row: int, b: int, target: Tensor) -> Tensor:
    """Groups (right head, right tail, left head, left tail, queue) -> positive, other step, other window, queue."""
    order = {0: (1, 2, 3), 1: (0, 2, 3), 2: (3, 0, 1), 3: (2, 0, 1)}
    groups = [group * b + torch.arange(b) for group in order[row]]
    rest = [*groups, torch.arange(4 * b, logits.shape[1])]
    return torch.cat([logits.gather(1, target[:, None]), logits[:, torch.cat(rest)]], dim=1)


STEPS = [name for name in FILES if name.endswith("train")]


def steps(method: FIMA, views: FIMAViews, lr: float) -> list[list[float]]:
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad], lr=lr, momentum=0.9, weight_decay=1e-4
    )
    rows = []
    for _ in range(3):
        out = method(views)
        rows.append([*(out.scalars[f"{part}_loss"].item() for part in ("instance", "dense", "local")), out.loss.item()])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return rows


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", STEPS)
def test_golden_three_optimizer_steps_after_each_pass(name: str) -> None:
    method, given, file = from_file(name)
    np.testing.assert_allclose(steps(method, method.views(given), 0.01), file["steps_loss"], rtol=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", STEPS)
def test_golden_three_optimizer_steps_in_double_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, given, file = from_file(name)
    monkeypatch.setattr(Tensor, "float", lambda self: self if self.dtype == torch.float64 else self.to(torch.float32))
    method.double()
    views = method.views(given)
    assert views.left_motion.dtype == torch.float64
    np.testing.assert_allclose(steps(method, views, 0.01), file["steps_loss_f64"], rtol=1e-9)


# -- laws


def batch(count: int = 4, seed: int = 0) -> Batch:
    """Clips that move, whose crops overlap."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.rand(count, 6, 3, 1, 32, 32, generator=generator)
    clips = (still + 0.5 * torch.rand(count, 6, 3, 8, 32, 32, generator=generator)).clamp(max=1) * 255
    boxes = torch.rand(count, 6, 4, generator=generator) * 0.1 + torch.tensor([0.1, 0.1, 0.8, 0.7])
    boxes[::2, 3] = boxes[::2, 3][:, [2, 1, 0, 3]]  # mirrored
    return Batch(clips.round().byte(), boxes, torch.zeros(count), torch.arange(count))


def test_views_follow_their_window_and_only_whole_clips_are_rgb() -> None:
    method, given = small(), batch()
    before = given.clips.clone()
    views = method.views(given)
    clips = given.clips.float() / 255
    assert [(view.window, view.frames) for view in method.plan.views] == [
        (window, frames) for window in (0, 1) for frames in ("stride", "head", "tail")
    ]
    for place, (rgb, motion) in {0: ("left", "left_motion"), 3: ("right", "right_motion")}.items():
        assert torch.equal(getattr(views, rgb), clips[:, place])
        whole = clips[:, place]
        torch.testing.assert_close(getattr(views, motion), (whole - whole.roll(1, 2) + 1) / 2)
        assert torch.equal(getattr(views, f"{rgb}_box"), given.boxes[:, place])
        for offset, part in ((1, "head"), (2, "tail")):
            clip = clips[:, place + offset]
            torch.testing.assert_close(getattr(views, f"{rgb}_{part}"), (clip - clip.roll(1, 2) + 1) / 2)
    assert torch.equal(given.clips, before)
    plain = small(motion_color="none").views(given)
    torch.testing.assert_close(plain.left_head, clips[:, 1] - clips[:, 1].roll(1, 2))


def test_shared_crops_are_asked_for_and_frames_without_difference_left_out() -> None:
    assert [view.crop for view in small().plan.views] == ["own"] * 6
    assert [view.crop for view in small(local_crop="shared").plan.views] == ["own", "window", "window"] * 2
    method = small(first_difference="drop")
    assert method.views(batch()).left_motion.shape[2] == 7
    assert method(method.views(batch())).loss.isfinite()


def test_merged_predictions_equal_separate_ones_of_all_cells() -> None:
    method = small().eval()
    views = method.views(batch())
    maps = torch.stack([method.backbone(views.left), method.backbone(views.right)])
    cells = torch.stack([torch.randperm(16)[:7].expand(4, -1), torch.randperm(16)[:7].expand(4, -1)])
    query, step, dense = method.predict(maps, cells)
    table = positions(16, 32, maps.device)
    for grid in (0, 1):
        torch.testing.assert_close(query[grid], unit(method.online.head(pooled(maps[grid])[:, 0])))
        for t in (0, 1):
            tokens = [method.into(cells_of(each[:, :, t : t + 1])) + table for each in maps]
            out = unit(method.online.head(method.out_of(method.decoder(tokens[grid], tokens[1 - grid]))))
            torch.testing.assert_close(step[grid, :, t], out[:, 0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(dense[grid, :, t], out[:, 1:][:, cells[grid, 0]], rtol=1e-4, atol=1e-5)


def test_a_class_token_knows_only_the_clip_it_foretells() -> None:
    method = small().eval()
    maps = torch.rand(2, 3, 32, 2, 4, 4)
    cells = torch.arange(7).expand(2, 3, 7)
    step = method.predict(maps, cells)[1]
    maps[0] += torch.rand(3, 32, 2, 4, 4)
    changed = method.predict(maps, cells)[1]
    torch.testing.assert_close(changed[0], step[0])
    assert not torch.allclose(changed[1], step[1])


def test_local_logits_are_those_of_separate_terms() -> None:
    method, b = small(motion_queue=9), 3
    step, left, right = (unit(torch.randn(*shape, 16)) for shape in ((2, b, 2), (b, 2), (b, 2)))
    logits, target = method.local_logits(step, left, right)
    row = 0
    for grid, (own, other) in enumerate(((right, left), (left, right))):
        for t in (0, 1):
            query = step[grid, :, t] / 0.1
            negatives = torch.cat([own[:, 1 - t], other[:, 0], other[:, 1], method.motion_queue.keys])
            positive = (query * own[:, t]).sum(dim=1, keepdim=True)
            expected = F.cross_entropy(torch.cat([positive, query @ negatives.T], 1), torch.zeros(b, dtype=torch.int64))
            found = F.cross_entropy(logits[row : row + b], target[row : row + b])
            torch.testing.assert_close(found, expected)
            assert (logits[row : row + b].isfinite().sum(dim=1) == 1 + 3 * b + 9).all()
            row += b


def test_dense_loss_is_that_of_its_definition() -> None:
    torch.manual_seed(0)
    query, keys = (unit(torch.randn(3, 2, 5, 8)) for _ in range(2))
    near = torch.rand(3, 5, 5) < 0.3
    near[1] = False
    expected = []
    for b in (0, 2):
        cells = []
        for i in near[b].any(dim=1).nonzero().flatten():
            for t in (0, 1):
                every = (keys.flatten(0, 2) @ query[b, t, i] / 0.1).exp().sum()
                matches = (keys[b, t, near[b, i]] @ query[b, t, i] / 0.1).exp().sum()
                cells.append(-(matches / every).log())
        expected.append(torch.stack(cells).mean())
    found = dense_loss(query, keys, keys.flatten(0, 2), near, 0.1)
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_of_crops_that_are_the_same_square_each_cell_matches_itself_alone() -> None:
    box = torch.tensor([[0.2, 0.3, 0.6, 0.7]])
    assert torch.equal(neighbors(box, box, 4, 4, 0.7)[0], torch.eye(16, dtype=torch.bool))
    mirrored = box[:, [2, 1, 0, 3]]
    flipped = torch.arange(16).view(4, 4).flip(1).flatten()
    assert torch.equal(neighbors(box, mirrored, 4, 4, 0.7)[0], torch.eye(16, dtype=torch.bool)[flipped])


@pytest.mark.parametrize("why", ["far", "flat"])
def test_without_matches_the_dense_loss_is_zero_and_still_part_of_the_graph(why: str) -> None:
    method, given = small(local_weight=0.0), batch()
    if why == "far":
        given.boxes[:, 3] = torch.tensor([0.8, 0.8, 0.9, 0.9])
        given.boxes[:, 0] = torch.tensor([0.0, 0.0, 0.1, 0.1])
    else:
        method.foreground_cells = lambda activation: FIMA.foreground_cells(method, torch.zeros_like(activation))
    out = method(method.views(given))
    assert out.scalars["dense_loss"] == 0
    assert out.scalars["matched_cells"] == 0
    out.loss.backward()
    for key, parameter in method.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all()), key


def test_order_of_queue_and_logits() -> None:
    views = small().views(batch())
    each, both = small(), small(enqueue="after_both")
    found = [method(views).scalars["instance_loss"] for method in (each, both)]
    assert found[0] > found[1], "as released, a clip's own key is among its negatives"
    torch.testing.assert_close(each.queue.keys, both.queue.keys)
    for queue, count in ((each.queue, 8), (each.motion_queue, 16), (each.dense_queue, 4 * 4 * 16 % 100)):
        assert queue.place == count


def test_foreground_source_and_quantile() -> None:
    method, views = small().eval(), small().views(batch())
    maps = {}
    for source in ("both", "rgb", "motion"):
        method.foreground = source
        maps[source] = method.keys(views.left, views.left_motion, (views.left_head, views.left_tail)).activation
    torch.testing.assert_close(maps["rgb"] + maps["motion"], maps["both"])
    for quantile, count in ((0.0, 15), (0.5, 8), (0.75, 4)):
        mask, cells = small(foreground_quantile=quantile).foreground_cells(torch.rand(3, 16))
        assert (mask.sum(dim=1) == count).all()
        assert cells.shape == (3, count)


def test_half_precision_stays_close_and_its_queues_are_full_precision() -> None:
    views = small().views(batch())
    full, half = small(), small()
    expected = full(views)
    with torch.autocast("cpu", torch.bfloat16):
        out = half(views)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)
    out.loss.backward()
    for queue in (half.queue, half.motion_queue, half.dense_queue):
        assert queue.keys.dtype == torch.float32


def test_memory_format_changes_nothing() -> None:
    views = small().views(batch())
    plain, last = small(), small()
    for parameter in last.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    turned = FIMAViews(
        *(view.contiguous(memory_format=torch.channels_last_3d) if view.ndim == 5 else view for view in views)
    )
    torch.testing.assert_close(last(turned).loss, plain(views).loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("clips", "said"),
    [((8, 2, 32), None), ((16, 2, 32), "clip_frames=16"), ((8, 1, 32), "frame_stride=1"), ((8, 2, 8), "crop_size=8")],
)
def test_clips_that_cannot_work_are_refused(clips: tuple[int, int, int], said: str | None) -> None:
    problems = small().problems(*clips)
    assert [problem.split(":")[0] for problem in problems] == ([f"pretrain.{said}"] if said else [])
    assert small(first_difference="drop").problems(8, 2, 32) == []


def test_a_decoder_whose_heads_do_not_divide_its_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.decoder\.width=36: must be a multiple of 2 \* .* = 8"):
        small(width=36)


# -- two processes against one


def test_two_processes_agree_and_equal_one_with_gathered_negatives(tmp_path: Path) -> None:
    """In frozen statistics, with negatives from all ranks."""
    in_two_processes(_compare_rank, tmp_path, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    method = small(gather_negatives=True).eval()
    whole = method(method.views(batch(8)))
    assert whole.scalars["dense_loss"] > 0
    for shuffled in ("True", "False"):
        first, second = (rank[shuffled] for rank in ranks)
        for key, value in whole.scalars.items():
            torch.testing.assert_close((first[key] + second[key]) / 2, value, rtol=1e-4, atol=1e-5, msg=key)
        for name, queue in (("queue", method.queue), ("dense_queue", method.dense_queue)):
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
            torch.testing.assert_close(first[name], queue.keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first["motion_queue"], second["motion_queue"], rtol=0, atol=0)
        by_rank = method.motion_queue.keys[:32].view(4, 2, 4, 16).transpose(0, 1).flatten(0, 2)
        torch.testing.assert_close(first["motion_queue"][:32], by_rank, rtol=1e-4, atol=1e-5)


def _compare_rank(rank: int, folder: str) -> None:
    found: dict = {}
    given = Batch(*(part.chunk(2)[rank] for part in batch(8)))
    for shuffle in (True, False):
        method = small(gather_negatives=True, shuffle_bn=shuffle).eval()
        scalars = method(method.views(given)).scalars
        queues = {name: getattr(method, name).keys for name in ("queue", "motion_queue", "dense_queue")}
        found[str(shuffle)] = {**scalars, **queues}
    torch.save(found, f"{folder}/{rank}.pt")
