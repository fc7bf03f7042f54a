"""Magnitude against the masks of AP's authors, globally and layer by layer."""

from __future__ import annotations

import numpy as np
import torch

from rectified.pruning import Stage
from rectified.pruning.scores import LayerMagnitude, Snapshot, magnitude
from rectified.pruning.threshold import drop_smallest
from tests.pruning.scores.snapshots import residual


def test_magnitude_drops_what_the_ap_reference_drops(
    oracle: dict[str, np.ndarray], oracle_snapshot: Snapshot
) -> None:
    snapshot = oracle_snapshot
    theirs = {n: torch.from_numpy(oracle[f"ap/mask_after_X/{n}"]) for n in snapshot.masks}
    dropped = sum(int((~mask).sum()) for mask in theirs.values())
    ours = drop_smallest(magnitude(snapshot), snapshot.masks, dropped)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_layer_magnitude_is_magnitude_in_the_scope_of_a_layer() -> None:
    snapshot = residual()
    torch.testing.assert_close(LayerMagnitude()(snapshot), magnitude(snapshot), rtol=0, atol=0)
    assert Stage(LayerMagnitude(), 0.2).scope == "layer"
    assert Stage(LayerMagnitude(), 0.2, scope="2:4").scope == "layer"
    assert Stage(magnitude, 0.2).scope == "global"
