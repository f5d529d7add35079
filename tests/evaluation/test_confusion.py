from __future__ import annotations

import torch
import torch.nn.functional as F

from vidssl.evaluation.confusion import confusion, most_confused


def test_rows_are_true_classes_and_hold_shares() -> None:
    label = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    told = torch.tensor([0, 0, 0, 2, 1, 0, 3])
    shares = confusion(F.one_hot(told, 4).float(), label)
    expected = [[0.75, 0, 0.25, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]  # no video of class 2
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.double))
    assert most_confused(shares, 5) == [(1, 0, 0.5), (0, 2, 0.25)]
    assert most_confused(shares, 1) == [(1, 0, 0.5)]
    assert shares[0, 0] == 0.75, "what is given stays as it is"
