import numpy as np
import pytest
import torch

from rectified.data.stored import Stored
from rectified.errors import UserError


def stored(labels, names=None):
    return Stored(np.array(labels), lambda rows: torch.empty(0), names)


def test_named_classes_keep_their_numbers():
    rows = stored([2, 0], ("x", "y", "z"))
    assert rows.classes == ("x", "y", "z")
    assert rows.numbered(rows, "train").tolist() == [2, 0]


def test_unnamed_numbers_are_classes_in_ascending_order():
    train = stored([10, 9, 9])
    assert train.classes == ("9", "10")
    assert stored([9, 10]).numbered(train, "test").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 3], ("x", "y", "z"), "label 3 in row 1 of test is none of the 3 classes"),
        ([0, -1], ("x", "y", "z"), "label -1 in row 1"),
        ([0, 7], None, "label 7 in row 1 of test is none of the 2 classes"),
        (["0", "1"], None, "label '0' in row 0"),
    ],
)
def test_unknown_labels_are_refused(labels, names, message):
    with pytest.raises(UserError, match=message):
        stored(labels, names).numbered(stored([0, 1], names), "test")


def test_negative_labels_are_no_class_of_their_own():
    train = stored([0, 1, -1])
    with pytest.raises(UserError, match="label -1 in row 2 of train"):
        train.numbered(train, "train")
