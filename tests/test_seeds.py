import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from rectified import seeds
from rectified.errors import UserError
from rectified.seeds import generator, seeded


def drawn(*entropy, count=4):
    return tuple(torch.randint(2**31, (count,), generator=generator(*entropy)).tolist())


def test_the_draws_are_those_of_numpys_mersenne_twister_from_the_same_sequence():
    theirs = np.random.MT19937(seeds._sequence((3, "x", 2**63))).random_raw(2001)
    ours = torch.empty(2000, dtype=torch.int32).random_(generator=generator(3, "x", 2**63))
    # NumPy begins at the last word of its state, PyTorch at the first of the next
    assert np.array_equal(ours.numpy(), (theirs[1:] & 0x7FFFFFFF).astype(np.int32))


def test_the_same_entropy_gives_the_same_stream():
    assert drawn(7, 3, "batches") == drawn(7, 3, "batches")
    assert generator(7).initial_seed() == generator(7).initial_seed()


@pytest.mark.parametrize("place", [0, 1])
def test_every_bit_of_every_number_counts(place):
    found = set()
    for bit in range(64):
        entropy = [11, 12]
        entropy[place] ^= 1 << bit
        found.add(drawn(*entropy))
    assert len(found | {drawn(11, 12)}) == 65


def test_order_length_and_words_count():
    tuples = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (5, 1), (5 + 2**32,), (1 + 2**32,), (1, 1)]
    tuples += [("a",), ("b",), ("a", "b"), ("ab",), ("a", 0), (0, "a"), ("",)]
    assert len({drawn(*entropy) for entropy in tuples}) == len(tuples)


def test_neighbouring_streams_have_nothing_to_do_with_one_another():
    streams = torch.stack([torch.randn(4000, generator=generator(s)) for s in range(30)])
    found = torch.corrcoef(streams.double())[~torch.eye(30, dtype=torch.bool)]
    assert float(found.abs().max()) < 5 / 4000**0.5  # of 435 pairs; 5 deviations


def test_first_draws_over_many_seeds_are_uniform():
    first = [float(torch.rand((), generator=generator(s, e))) for s in range(60) for e in range(60)]
    assert stats.kstest(first, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_that_does_not_fit_is_named(number):
    with pytest.raises(UserError, match=rf"seed must be in \[0, 2\*\*64\), got {number}"):
        generator(0, number)


def test_the_global_state_is_seeded_for_a_while():
    before = torch.get_rng_state()
    with seeded(3, "dropout"):
        first = torch.rand(5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, torch.rand(5, generator=generator(3, "dropout")))


def test_the_global_state_is_put_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(3):
        1 // int(torch.zeros(()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_seeded_and_put_back_only_where_it_is_asked_for():
    before = torch.cuda.get_rng_state()
    found = []
    for _ in range(2):
        with seeded(3, device="cuda"):
            found.append((torch.rand(5), torch.rand(5, device="cuda")))
        assert torch.equal(before, torch.cuda.get_rng_state())
    for first, second in itertools.pairwise(found):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    with seeded(3):
        assert torch.equal(before, torch.cuda.get_rng_state())
    draws = [
        torch.rand(5, generator=generator(s, device="cuda"), device="cuda")
        for s in (5, 5, 5 + 2**32)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
