import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rectified.data import ImageSource, load_images
from rectified.errors import UserError

CIFAR10 = Path(__file__).parents[2] / "../shared/data/cifar10"
NAMES = ["cat", "ant", "bee"]
METADATA = {
    b"huggingface": json.dumps(
        {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    ).encode()
}


def png(level, size=(5, 4), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, level if mode == "L" else (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(count=30, *, labels=None, names=False, start=0, **picture):
    """Row i has red level start + i and, unless given, class i modulo 3."""
    cells = [{"bytes": png(start + i, **picture), "path": None} for i in range(count)]
    labels = [i % 3 for i in range(count)] if labels is None else labels
    return pa.table({"img": cells, "label": labels}).replace_schema_metadata(
        METADATA if names else None
    )


def write(path, *args, **kwargs):
    pq.write_table(table(*args, **kwargs), path, row_group_size=7)
    return path


def levels(images):
    return images.pixels[:, 0, 0, 0].tolist()


def image_folder(root, classes=("b", "a"), count=10, size=(5, 4)):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i:02}.png").write_bytes(png(100 * number + i, size))
    return root


# The embedded digits


def test_digits_are_dealt_out_once_each():
    data = load_images("digits", seed=3)
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [1294, 144, 359]
    dealt = torch.cat([part.pixels for part in parts]).flatten(1)
    expected = torch.from_numpy(load_digits().data)
    assert sorted(dealt.tolist()) == sorted(expected.tolist())
    assert data.classes == tuple("0123456789")
    assert data.train.peak == 16


def test_every_split_of_the_digits_is_stratified():
    data = load_images("digits")
    for part in (data.train, data.validation, data.test):
        share = part.labels.bincount() / len(part)
        torch.testing.assert_close(share, torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_the_seed_decides_the_split():
    first, again, other = (load_images("digits", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.test.pixels, again.test.pixels)
    assert torch.equal(first.train.labels, again.train.labels)
    assert not torch.equal(first.test.pixels, other.test.pixels)


def test_a_limit_takes_a_stratified_part_of_train_alone():
    whole, limited = load_images("digits"), load_images("digits", limit=100)
    assert len(limited.train) == 100
    assert limited.train.labels.bincount().min() >= 9
    assert torch.equal(whole.test.pixels, limited.test.pixels)
    assert torch.equal(whole.validation.pixels, limited.validation.pixels)
    assert {tuple(p) for p in limited.train.pixels.flatten(1).tolist()} <= {
        tuple(p) for p in whole.train.pixels.flatten(1).tolist()
    }


def test_a_limit_above_the_number_of_images_keeps_all():
    assert len(load_images("digits", limit=10**6).train) == 1294


def test_no_validation_leaves_it_empty():
    data = load_images("digits", validation=0.0)
    assert (len(data.train), len(data.validation)) == (1438, 0)


def test_digits_can_be_resized():
    data = load_images("digits", image_size=16)
    assert data.train.pixels.shape[1:] == (1, 16, 16)
    assert data.train.pixels.max() <= 16


def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    load_images("digits")
    assert torch.equal(state, torch.get_rng_state())


# Parquet


def test_parquet_folder_keeps_its_splits_and_pairs_labels_with_images(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", 30, names=True)
    write(tmp_path / "train-00001-of-00002.parquet", 15, names=True, start=30)
    write(tmp_path / "test.parquet", 12, names=True, start=100)
    write(tmp_path / "validation.parquet", 9, names=True, start=200)
    data = load_images(str(tmp_path))
    assert levels(data.train) == list(range(45))
    assert levels(data.test) == list(range(100, 112))
    assert levels(data.validation) == list(range(200, 209))
    for part in (data.train, data.test, data.validation):
        assert part.labels.tolist() == [i % 3 for i in range(len(part))]
    assert data.classes == tuple(NAMES)
    assert (data.name, data.channels, data.height, data.width) == (tmp_path.name, 3, 4, 5)


def test_missing_splits_are_cut_from_train(tmp_path):
    data = load_images(str(write(tmp_path / "toy.parquet", 60)), limit=20)
    assert data.name == "toy"
    assert [len(x) for x in (data.train, data.validation, data.test)] == [20, 5, 12]
    parts = [data.train, data.validation, data.test]
    dealt = [level for part in parts for level in levels(part)]
    assert len(set(dealt)) == 37
    assert all(
        label == level % 3
        for part in parts
        for level, label in zip(levels(part), part.labels.tolist(), strict=True)
    )


def test_only_the_rows_that_a_limit_keeps_are_decoded(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(Image, "open", lambda file, real=Image.open: opened.append(1) or real(file))
    load_images(str(write(tmp_path / "train.parquet", 60)), limit=3)
    assert len(opened) == 3 + 5 + 12


def test_a_source_decodes_each_picture_once_and_gives_what_load_images_gives(tmp_path, monkeypatch):
    path = str(write(tmp_path / "train.parquet", 60))
    seeds, limits = (0, 1, 2), (3, 20, None)
    expected = [load_images(path, seed=s, limit=n) for s, n in zip(seeds, limits, strict=True)]
    opened = []
    monkeypatch.setattr(Image, "open", lambda file, real=Image.open: opened.append(1) or real(file))
    source = ImageSource(path)
    made = [source.load(seed=s, limit=n) for s, n in zip(seeds, limits, strict=True)]
    assert len(opened) == 60
    for one, other in zip(made, expected, strict=True):
        assert (one.name, one.classes) == (other.name, other.classes)
        for split in ("train", "validation", "test"):
            mine, its = getattr(one, split), getattr(other, split)
            assert torch.equal(mine.pixels, its.pixels)
            assert torch.equal(mine.labels, its.labels)


def test_a_name_that_only_contains_test_is_no_test_split(tmp_path):
    write(tmp_path / "latest.parquet", 30)
    assert len(load_images(str(tmp_path)).train) == 21 + 1


def test_files_that_name_no_split_are_passed_over_beside_train(tmp_path):
    write(tmp_path / "train.parquet", 30)
    write(tmp_path / "unlabelled.parquet", 30)
    data = load_images(str(tmp_path))
    assert len(data.train) + len(data.validation) + len(data.test) == 30


@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int32(), pa.string())])
def test_words_are_classes_in_alphabetical_order(tmp_path, kind):
    words = pa.array(["bee", "ant"] * 15).cast(kind)
    pq.write_table(
        pa.table({"picture": [png(i) for i in range(30)], "target": words}),
        tmp_path / "train.parquet",
    )
    data = load_images(str(tmp_path))
    assert data.classes == ("ant", "bee")
    assert all(
        (level % 2 == 0) == (label == 1)
        for level, label in zip(levels(data.train), data.train.labels.tolist(), strict=True)
    )


def test_grey_splits_get_three_channels_where_another_has_colour(tmp_path):
    write(tmp_path / "train.parquet", 30, mode="L")
    write(tmp_path / "test.parquet", 9)
    data = load_images(str(tmp_path))
    assert data.channels == 3
    assert torch.equal(data.train.pixels[:, 0], data.train.pixels[:, 2])


@pytest.mark.skipif(not CIFAR10.exists(), reason="needs ../shared/data/cifar10")
def test_cifar10_rows_are_the_files_rows():
    data = load_images(str(CIFAR10), limit=20)
    rows = pq.read_table(CIFAR10 / "test.parquet").to_pylist()
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.train.labels.bincount().tolist() == [2] * 10
    assert data.test.labels.tolist() == [row["label"] for row in rows]
    for row in (0, 1, 4999):
        image = Image.open(io.BytesIO(rows[row]["img"]["bytes"]))
        assert np.array_equal(data.test.pixels[row].permute(1, 2, 0), np.asarray(image))


# Folders of images


def test_image_folder_with_splits(tmp_path):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "test", count=3)
    image_folder(tmp_path / "valid", count=2)
    data = load_images(str(tmp_path))
    assert data.classes == ("a", "b")
    assert levels(data.train) == [*range(100, 110), *range(10)]
    assert data.train.labels.tolist() == [0] * 10 + [1] * 10
    assert (len(data.validation), len(data.test)) == (4, 6)


def test_plain_image_folder_is_split_and_other_files_are_passed_over(tmp_path):
    image_folder(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".hidden.png").write_text("no picture")
    data = load_images(str(tmp_path))
    assert [len(x) for x in (data.train, data.validation, data.test)] == [14, 2, 4]


def test_image_size_makes_splits_of_different_size_one(tmp_path):
    image_folder(tmp_path / "train")
    image_folder(tmp_path / "test", size=(7, 7))
    with pytest.raises(UserError, match="test are 3x7x7, those of train 3x4x5; give image_size"):
        load_images(str(tmp_path))
    assert load_images(str(tmp_path), image_size=6).test.pixels.shape[1:] == (3, 6, 6)


# The hub


class Split:
    """As much of `datasets.Dataset` as the reader uses."""

    def __init__(self, table):
        self.table = table
        self.features = {"label": SimpleNamespace(names=NAMES)}

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def __getitem__(self, rows):
        return self.table[rows]


def test_hub_names_are_read_like_parquet(monkeypatch, tmp_path):
    def load_dataset(name):
        train = pa.concat_tables([table(15), table(15, start=15)])
        return {"train": Split(train), "test": Split(table(6)), "unsupervised": Split(table(1))}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    pq.write_table(table(30, names=True), tmp_path / "train.parquet")
    pq.write_table(table(6, names=True), tmp_path / "test.parquet")
    hub, local = load_images("owner/name"), load_images(str(tmp_path))
    assert hub.name == "owner/name"
    assert hub.classes == tuple(NAMES)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(hub, split).pixels, getattr(local, split).pixels)
        assert torch.equal(getattr(hub, split).labels, getattr(local, split).labels)


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'pip install "rectified\[hub\]"'):
        load_images("owner/name")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def load_dataset(name):
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        UserError, match=r"no path here .* \(no network\); check the name"
    ) as caught:
        load_images("owner/name")
    assert "\n" not in str(caught.value)


def test_a_hub_set_without_train_is_refused(monkeypatch):
    fake = SimpleNamespace(load_dataset=lambda name: {"test": Split(table(6))})
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(UserError, match="has no training split, it has test"):
        load_images("owner/name")


# What goes wrong


@pytest.mark.parametrize("source", ["nothing", "a/b/c", "./no/folder", "/no/folder", ""])
def test_unknown_sources_are_told_what_is_accepted(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"give 'digits', a parquet file|must hold parquet files"):
        load_images(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"validation": 1.0}, r"validation must be in \[0, 1\), got 1.0"),
        ({"validation": float("nan")}, r"validation must be in \[0, 1\), got nan"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"limit": 9}, r"limit must be at least the number of classes \(10\), got 9"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_images("digits", **options)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="two or more classes, got 0 such folders"):
        load_images(str(tmp_path))


def test_a_folder_with_one_class_is_refused(tmp_path):
    image_folder(tmp_path, classes=("only",))
    with pytest.raises(UserError, match="two or more classes, got 1 such folder"):
        load_images(str(tmp_path))


def test_a_class_without_images_is_refused(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image file"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("labels", [[], [1, 1, 1]])
def test_fewer_than_two_classes_in_parquet_are_refused(tmp_path, labels, names):
    pq.write_table(
        table(3, labels=[1, 1, 1], names=names)[: len(labels)], tmp_path / "train.parquet"
    )
    with pytest.raises(UserError, match=rf"at least two classes, got \[{'1' if labels else ''}\]"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("label", [3, -1])
def test_labels_outside_the_names_are_refused(tmp_path, label):
    write(tmp_path / "train.parquet", 4, labels=[0, 1, 2, label], names=True)
    with pytest.raises(UserError, match=f"label {label} in row 3 of train"):
        load_images(str(tmp_path))


def test_missing_labels_are_refused(tmp_path):
    write(tmp_path / "train.parquet", 3, labels=[0, None, 1])
    with pytest.raises(UserError, match=r"train\.parquet: 1 labels are missing"):
        load_images(str(tmp_path))


def test_labels_of_other_types_are_refused(tmp_path):
    write(tmp_path / "train.parquet", 2, labels=[0.5, 1.5])
    with pytest.raises(UserError, match="labels must be integers or words, got double"):
        load_images(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"img": [b"x"], "kind": [0]}, r"no column of labels .* it has img, kind"),
        ({"img": ["x"], "label": [0]}, r"no column of images .* it has img, label"),
        ({"img": [{"path": "x"}], "label": [0]}, "no column of images"),
    ],
)
def test_missing_columns_are_named(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message):
        load_images(str(tmp_path))


def test_parquet_without_train_is_refused(tmp_path):
    write(tmp_path / "test.parquet", 6)
    with pytest.raises(UserError, match=r"no parquet file is of the training split, got \['test"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no parquet"])
def test_unreadable_parquet_is_refused(tmp_path, content):
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet cannot be read as parquet"):
        load_images(str(tmp_path))


def test_a_group_of_fewer_rows_than_it_says_is_refused(tmp_path, monkeypatch):
    # as pyarrow reads a file whose footer and pages disagree
    write(tmp_path / "train.parquet", 30)
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: read(*a, **k).slice(1))
    with pytest.raises(UserError, match=r"train\.parquet cannot be read as parquet \(6 rows in gr"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("content", [b"broken", None])
def test_a_broken_image_in_parquet_is_named_by_its_row(tmp_path, content):
    cells = [{"bytes": png(i), "path": None} for i in range(20)]
    cells[17]["bytes"] = content
    broken = pa.table({"img": cells, "label": [0, 1] * 10})
    pq.write_table(broken, tmp_path / "train.parquet", row_group_size=8)
    with pytest.raises(UserError, match=r"train\.parquet, row 17 cannot be read as an image"):
        load_images(str(tmp_path))


def test_a_broken_image_file_is_named(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "a" / "03.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"a/03\.png cannot be read as an image"):
        load_images(str(tmp_path))
