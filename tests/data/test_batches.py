import pytest
import torch
import torch.nn.functional as F

from rectified import seeds
from rectified.data import Augment, Batches, Images
from rectified.errors import UserError


def images(count=10):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 6, 6), generator=generator).to(torch.uint8)
    return Images(pixels, torch.arange(count))


def same(a, b):
    return all(
        torch.equal(x, y) and torch.equal(labels, other)
        for (x, labels), (y, other) in zip(a, b, strict=True)
    )


def labels(batches, epoch=0):
    return [batch.tolist() for _, batch in batches.epoch(epoch)]


def test_an_epoch_depends_on_seed_and_number_alone():
    first, second = (Batches(images(), 4, seed=3, augment=Augment(2)) for _ in range(2))
    list(first.epoch(0))
    next(first.epoch(1))
    assert same(first.epoch(5), second.epoch(5))


@pytest.mark.parametrize(("seed", "epoch"), [(0, 1), (1, 0), (2**32, 0)])
def test_other_epochs_and_seeds_have_another_order(seed, epoch):
    assert labels(Batches(images(100), 100)) != labels(Batches(images(100), 100, seed=seed), epoch)


def test_iterating_repeats_epoch_zero():
    batches = Batches(images(), 4)
    assert same(batches, batches.epoch(0))
    assert same(batches, batches)


@pytest.mark.parametrize(("shuffle", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_a_short_last_batch_is_dropped_only_when_shuffled(shuffle, sizes):
    batches = Batches(images(), 4, shuffle=shuffle)
    assert [len(y) for _, y in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_only_batch_is_kept_however_short(shuffle):
    batches = Batches(images(3), 4, shuffle=shuffle)
    assert len(batches) == 1
    assert sorted(labels(batches)[0]) == [0, 1, 2]


def test_in_order_all_images_come_once_as_they_are():
    whole = images()
    pixels, classes = zip(*Batches(whole, 4, shuffle=False), strict=True)
    torch.testing.assert_close(torch.cat(pixels), whole.pixels / 255)
    assert torch.equal(torch.cat(classes), whole.labels)


def test_shuffled_images_keep_their_labels():
    whole = images(8)
    for pixels, classes in Batches(whole, 4):
        torch.testing.assert_close(pixels, whole.pixels[classes] / 255)


def test_the_peak_means_one():
    digits = Images(torch.full((2, 1, 2, 2), 16, dtype=torch.uint8), torch.tensor([0, 1]), 16)
    assert next(iter(Batches(digits, 2)))[0].unique().tolist() == [1.0]


def test_standardised_images_have_mean_zero_and_deviation_one():
    whole = images(64)
    std, mean = torch.std_mean(whole.pixels / 255, dim=(0, 2, 3), correction=0)
    pixels, _ = next(iter(Batches(whole, 64, mean=mean, std=std)))
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3))


def test_padding_is_black_before_standardising():
    white = Images(torch.full((50, 1, 4, 4), 255, dtype=torch.uint8), torch.arange(50))
    mean, std = torch.tensor([0.5]), torch.tensor([0.25])
    pixels, _ = next(iter(Batches(white, 50, augment=Augment(2), mean=mean, std=std)))
    assert pixels.unique().tolist() == [-2.0, 2.0]


def test_batches_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    list(Batches(images(), 4, augment=Augment()))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_data():
    options = {"seed": 1, "augment": Augment(2)}
    on_gpu = [(x.cpu(), y.cpu()) for x, y in Batches(images(), 4, device="cuda", **options)]
    for (x, y), (x_gpu, y_gpu) in zip(Batches(images(), 4, **options), on_gpu, strict=True):
        torch.testing.assert_close(x, x_gpu)
        assert torch.equal(y, y_gpu)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "images must hold at least one image"),
        (3, {"size": 0}, "size must be at least 1, got 0"),
        (3, {"seed": -1}, "seed must be at least 0, got -1"),
        (3, {"std": torch.tensor([1.0, 0.0, 1.0])}, "std must be above 0"),
    ],
)
def test_bad_arguments_are_refused(count, options, message):
    with pytest.raises(UserError, match=message):
        Batches(images(count), **{"size": 4, **options})


def plain_epoch(pixels, labels, size, seed, number, pad):
    """Batch by batch, image by image, each draw where it is needed."""
    generator = seeds.generator(seed, number, "batches")
    order = torch.randperm(len(labels), generator=generator)
    for rows in order.split(size)[: len(labels) // size]:
        shift = torch.randint(2 * pad + 1, (2, size, 1), generator=generator)
        mirrored = torch.rand(size, 1, generator=generator) < 0.5
        made = []
        for image, y, x, mirror in zip(pixels[rows], *shift, mirrored, strict=True):
            crop = F.pad(image, (pad,) * 4)[:, y : y + image.shape[1], x : x + image.shape[2]]
            made.append(crop.flip(2) if mirror else crop)
        yield (torch.stack(made) / 255 - 0.4) / 0.2, labels[rows]


@pytest.mark.parametrize("number", [0, 3])
def test_an_epoch_drawn_at_once_is_the_one_drawn_batch_by_batch(number):
    pixels = torch.randint(256, (23, 3, 8, 6), generator=torch.Generator().manual_seed(1))
    pixels, names = pixels.to(torch.uint8), torch.arange(23)
    where = {"mean": torch.full((3,), 0.4), "std": torch.full((3,), 0.2)}
    batches = Batches(Images(pixels, names), 5, seed=7, augment=Augment(2), **where)
    plain = list(plain_epoch(pixels, names, 5, 7, number, 2))
    assert len(plain) == 4
    assert same(batches.epoch(number), plain)
