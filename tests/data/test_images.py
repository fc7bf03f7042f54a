import pytest
import torch

from rectified.data import ImageData, Images
from rectified.errors import UserError


def images(labels=(0, 1, 1), channels=3, peak=255, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), channels, 5, 4)
    pixels = torch.randint(peak + 1, shape, generator=generator).to(torch.uint8)
    return Images(pixels, torch.tensor(labels), peak)


def data(train=None, validation=None, test=None, classes=("a", "b")):
    whole = images()
    return ImageData("toy", classes, train or whole, validation or whole, test or whole)


@pytest.mark.parametrize("peak", [255, 16])
def test_moments_are_those_of_the_scaled_pixels(peak):
    train = images(range(50), peak=peak)
    toy = ImageData("toy", tuple("x" * 50), train, train, train)
    std, mean = torch.std_mean(train.pixels.double() / peak, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(toy.mean, mean.float())
    torch.testing.assert_close(toy.std, std.float())


def test_a_constant_channel_has_deviation_one():
    flat = Images(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8), torch.tensor([0, 1]))
    assert data(flat, flat, flat).std.tolist() == [1.0]


def test_moments_are_of_train_only():
    assert torch.equal(data().mean, data(test=images(seed=1)).mean)


def test_shape_is_that_of_the_images():
    toy = data()
    assert (toy.channels, toy.height, toy.width) == (3, 5, 4)


def test_select_keeps_the_given_order():
    whole = images((0, 1, 2))
    chosen = whole.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.pixels, whole.pixels[[2, 0]])
    assert chosen.labels.tolist() == [2, 0]


@pytest.mark.parametrize("peak", [0, 256])
def test_peak_out_of_range_is_refused(peak):
    with pytest.raises(UserError, match=rf"peak must be in 1\.\.255, got {peak}"):
        Images(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), peak)


def test_labels_must_be_one_an_image():
    with pytest.raises(UserError, match="got 3 for 2 images"):
        Images(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]))


def test_negative_labels_are_refused():
    with pytest.raises(UserError, match="at least 0, got -1"):
        images((0, -1))


def test_pixels_above_the_peak_are_refused():
    with pytest.raises(UserError, match=r"pixels must be in 0\.\.16, got 17"):
        Images(torch.full((1, 1, 2, 2), 17, dtype=torch.uint8), torch.tensor([0]), 16)


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(UserError, match=r"labels of test must be below .* \(2\), got 2"):
        data(test=images((0, 2)))


def test_one_class_is_refused():
    with pytest.raises(UserError, match="at least two classes"):
        data(train=images((1, 1)))


def test_splits_of_different_shape_are_refused():
    with pytest.raises(UserError, match="validation are 1x5x4, those of train 3x5x4; give image_"):
        data(validation=images(channels=1))


def test_splits_of_different_peak_are_refused():
    with pytest.raises(UserError, match="got 16 in test and 255 in train"):
        data(test=images(peak=16))
