import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectified.data.splits import cut, stratified
from rectified.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.data())
def test_stratified_has_the_exact_size_and_every_class(sizes, data):
    labels = torch.repeat_interleave(torch.arange(len(sizes)) * 3, torch.tensor(sizes))
    count = data.draw(st.integers(len(sizes), len(labels)))
    rows = stratified(labels, count, generator())
    assert len(rows.unique()) == count
    assert len(labels[rows].unique()) == len(sizes)
    kept, size = labels[rows].unique(return_counts=True)[1], torch.tensor(sizes)
    ideal = 1 + (count - len(sizes)) * (size - 1) / max(int((size - 1).sum()), 1)
    assert ((kept - ideal).abs() < 1 + 1e-4).all()


def test_balanced_classes_stay_balanced():
    labels = torch.arange(10).repeat(100)
    assert labels[stratified(labels, 250, generator())].bincount().tolist() == [25] * 10


def test_every_row_is_as_likely():
    labels = torch.tensor([0] * 6 + [1] * 3)
    draws = torch.stack(
        [torch.zeros(9).index_fill(0, stratified(labels, 6, generator(s)), 1) for s in range(3000)]
    )
    # 4 of 6 and 2 of 3; the standard error is 0.009.
    torch.testing.assert_close(draws.mean(0), torch.full((9,), 2 / 3), atol=0.04, rtol=0)


def test_cut_is_a_partition_that_the_seed_decides():
    labels = torch.arange(5).repeat(20)
    kept, held_out = cut(labels, 0.2, generator(1))
    assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(100))
    assert len(held_out) == 20
    assert torch.equal(held_out, cut(labels, 0.2, generator(1))[1])
    assert not torch.equal(held_out, cut(labels, 0.2, generator(2))[1])


def test_cut_of_nothing_keeps_all():
    kept, held_out = cut(torch.arange(5).repeat(2), 0.0, generator())
    assert (len(kept), len(held_out)) == (10, 0)


@pytest.mark.parametrize("count", [1, 7])
def test_stratified_refuses_impossible_counts(count):
    with pytest.raises(UserError, match=rf"classes \(2\) and of images \(6\), got {count}"):
        stratified(torch.tensor([0, 0, 0, 1, 1, 1]), count, generator())


def test_cut_refuses_to_empty_a_class():
    with pytest.raises(UserError, match="cannot cut 50% off 4 images of 3 classes"):
        cut(torch.tensor([0, 1, 2, 2]), 0.5, generator())
