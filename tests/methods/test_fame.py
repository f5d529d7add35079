from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import golden
from tests.methods.test_moco import PLAIN, Small
from vidssl.clips import Batch
from vidssl.methods.fame import FAME


def fame(**changes: object) -> FAME:
    options = {
        "beta": 0.5, "mask": "fame", "background": "inter", "apply_to": "single", "hue": "code", "allow_self": True,
    }  # fmt: skip
    return FAME(Small(), nn.Identity(), **{**options, **changes}, contrast=PLAIN)


def clips(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.rand(count, 3, 5, 32, 32), torch.rand(count, 3, 5, 32, 32)


@pytest.mark.parametrize("name", ["mask_blob_32x32_b05", "mask_blob_112x112_b05", "mask_noise_32x32_b03"])
def test_golden_swap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults reproduce the released module, given its permutation."""
    file = golden(f"fame/{name}.npz")
    clip = torch.from_numpy(file["video_u8"]).float() / 255
    method = fame(beta=float(file["beta"]))
    monkeypatch.setattr(method, "donor_index", lambda count: torch.from_numpy(file["index"]))
    mask = file["mask"][:, None, None].astype(bool)
    expected = np.where(mask, file["video_u8"], file["video_u8"][file["index"]])
    left, right = method.mix(clip, clip)
    np.testing.assert_array_equal(left.numpy(), (torch.from_numpy(expected).float() / 255).numpy())
    assert torch.equal(right, clip), "one view only"


def test_background_none_is_plain_moco_and_beta_one_too() -> None:
    left, right = clips()
    for method in (fame(background="none"), fame(beta=1.0)):
        mixed = method.mix(left, right)
        assert torch.equal(mixed[0], left)
        assert torch.equal(mixed[1], right)


def test_intra_takes_the_background_from_the_other_clip_of_the_video() -> None:
    left, right = clips()
    method = fame(background="intra", apply_to="both")
    mixed_left, mixed_right = method.mix(left, right)
    mask = method.foreground(left)[:, None, None]
    assert torch.equal(mixed_left, torch.where(mask, left, right))
    mask = method.foreground(right)[:, None, None]
    assert torch.equal(mixed_right, torch.where(mask, right, left))


def test_apply_to_both_changes_both_with_draws_of_their_own() -> None:
    left, right = clips()
    torch.manual_seed(0)
    single = fame().mix(left, right)
    torch.manual_seed(0)
    both = fame(apply_to="both").mix(left, right)
    assert torch.equal(single[0], both[0])
    assert not torch.equal(both[1], right)


def test_donors_are_a_permutation_without_fixed_points_where_asked() -> None:
    torch.manual_seed(0)
    with_self, without = fame(), fame(allow_self=False)
    fixed = 0
    for _ in range(200):
        for method in (with_self, without):
            donor_index = method.donor_index(8)
            assert sorted(donor_index.tolist()) == list(range(8))
        fixed += int((with_self.donor_index(8) == torch.arange(8)).sum())
        assert not (without.donor_index(8) == torch.arange(8)).any()
    assert 100 < fixed < 300, "one fixed point a draw is expected"


def test_views_leave_the_batch_alone_and_are_made_of_it() -> None:
    clip = torch.randint(0, 256, (4, 2, 3, 4, 32, 32), dtype=torch.uint8)
    batch = Batch(clip.clone(), torch.zeros(4, 2, 4), torch.zeros(4), torch.arange(4))
    left, right = fame().views(batch)
    assert torch.equal(batch.clips, clip)
    assert torch.equal(right, clip[:, 1].float() / 255)
    assert not torch.equal(left, clip[:, 0].float() / 255)


def test_pictures_show_clip_mask_and_swap() -> None:
    clip = torch.randint(0, 256, (4, 2, 3, 4, 32, 32), dtype=torch.uint8)
    shown = fame().pictures(Batch(clip, torch.zeros(4, 2, 4), torch.zeros(4), torch.arange(4)))
    assert set(shown) == {"clip", "foreground", "swapped"}
    assert all(picture.shape == (4, 3, 4, 32, 32) for picture in shown.values())
    mask = shown["foreground"].bool()
    assert torch.equal(shown["swapped"][mask], shown["clip"][mask])
