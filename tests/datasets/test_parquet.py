"""Parquet files: what they may be called, which columns are read, and what is said of those that cannot be."""

import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bench.data.images import load_data
from bench.datasets import parquet
from bench.spec import DataSpec, UsageError


def encode(value, format="PNG", **options):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(file, format, **options)
    return file.getvalue()


def write(path, images, labels, columns=("img", "label")):
    rows = [data and {"bytes": data, "path": None} for data in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({columns[0]: rows, columns[1]: labels}), path)


def loaded(root):
    """Training and test images of a folder; decoded beside it."""
    return load_data(parquet.Dataset(), DataSpec(name="parquet", path=str(root), root=str(root.parent / "cache")))


def values(images):
    """The first channel of each, in the order of the files."""
    return sorted(images.images[:][:, 0, 0, 0].tolist())


@pytest.fixture
def root(tmp_path):
    """A folder with test images of two classes, and none to train on."""
    write(tmp_path / "photos" / "test.parquet", [encode(8), encode(9)], [0, 1])
    return tmp_path / "photos"


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "fine_label"), ("images", "labels"), ("jpg", "cls")])
def test_reads_what_was_written(root, columns):
    write(root / "test.parquet", [encode(v) for v in (10, 20, 30)], [0, 2, 1], columns)
    write(root / "train.parquet", [encode(v) for v in (40, 50, 60)], [2, 1, 0], columns)
    train, test = loaded(root)
    assert (train.label, train.classes, train.image_shape) == ("photos", 3, (3, 5, 6))
    assert dict(zip(train.images[:][:, 0, 0, 0].tolist(), train.labels.tolist(), strict=True)) == {40: 2, 50: 1, 60: 0}
    assert dict(zip(test.images[:][:, 0, 0, 0].tolist(), test.labels.tolist(), strict=True)) == {10: 0, 20: 2, 30: 1}
    spec = DataSpec(name="parquet", path=str(root), root=str(root.parent), train_images=2)
    assert load_data(parquet.Dataset(), spec)[0].label == "photos (subset 2/3)"


def test_held_out_images_need_no_test_images(root):
    (root / "test.parquet").unlink()
    write(root / "train.parquet", [encode(v) for v in range(10)], [0, 1] * 5)
    spec = DataSpec(name="parquet", path=str(root), root=str(root.parent / "cache"), held_out=True)
    train, test = load_data(parquet.Dataset(), spec)
    assert (len(train), len(test)) == (8, 2)
    assert sorted(values(train) + values(test)) == list(range(10))


def test_images_as_bytes_alone(root):
    pq.write_table(pa.table({"image": [encode(3), encode(4)], "label": [1, 0]}), root / "train.parquet")
    assert values(loaded(root)[0]) == [3, 4]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
        ("data/train-00000-of-00002-0a1b2c3d.parquet", "data/train-00001-of-00002-4e5f6a7b.parquet"),
        ("plain_text/train/0000.parquet", "plain_text/train/0001.parquet"),
    ],
)
def test_parts_in_their_order_as_the_hub_has_them(root, names):
    for number, name in enumerate(names):
        write(root / name, [encode(2 * number), encode(2 * number + 1)], [0, 1])
    beside = root / "plain_text" if "plain_text" in names[0] else (root / names[0]).parent
    called = "test" if "plain_text" in names[0] else "validation"
    (root / "test.parquet").rename(beside / f"{called}.parquet")
    dataset = parquet.Dataset()
    listing = dataset.listing(root, "train", None)
    assert listing.labels.tolist() == [0, 1, 0, 1]
    assert [data for _, data in listing.images()] == [encode(value) for value in range(4)]
    train, test = loaded(root)
    assert (values(train), values(test)) == ([0, 1, 2, 3], [8, 9])
    assert test.notes == ("there is no test.parquet: validation is taken as test",) * (called == "validation")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train-00000-of-00003.parquet", "train-00002-of-00003.parquet"),
            "expected all 3 parts of train in .*, found train-00000-of-00003.*, train-00002-of-00003.parquet; copy the",
        ),
        (
            ("train.parquet", "train-00000-of-00001.parquet"),
            "expected the images of train once, got .*/train.parquet and .*/train-00000-of-00001.parquet; remove one",
        ),
        (
            ("train-00000-of-00001.parquet", "train-00000-of-00001-ab.parquet"),
            "expected each part once, got .*-ab.parquet",
        ),
        (
            ("coarse/train.parquet", "fine/train.parquet"),
            "or one folder inside, got it in coarse, fine; name one of them",
        ),
    ],
)
def test_parts_that_are_no_whole(root, names, message):
    for name in names:
        write(root / name, [encode(1), encode(2)], [0, 1])
    with pytest.raises(UsageError, match=message):
        loaded(root)


def test_other_columns_that_could_be_meant_are_named(root):
    table = {"img": [encode(1), encode(2)], "image": [encode(3), encode(4)], "label": [0, 1], "fine_label": [1, 0]}
    pq.write_table(pa.table(table), root / "train.parquet")
    train, _ = loaded(root)
    assert values(train) == [1, 2]
    read = [("img", "image"), ("label", "fine_label")]
    assert train.notes == tuple(f"the column {name} of train is read, not {other}" for name, other in read)


def test_files_of_other_names_are_counted(root):
    for name in ("train", "train_1", "train-extra"):
        write(root / f"{name}.parquet", [encode(1), encode(2)], [0, 1])
    train, _ = loaded(root)
    assert (len(train), train.notes) == (2, ("files of train that are left out: 2 .parquet (train-extra.parquet)",))


def test_missing(tmp_path):
    with pytest.raises(UsageError, match=r"expected \S+/train.parquet, found no such file; the folder must hold"):
        loaded(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 50, -1, -200])
def test_truncated(root, keep):
    path = root / "train.parquet"
    write(path, [encode(v) for v in range(20)], list(range(20)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"\S+train.parquet is damaged: expected a whole parquet file, got") as info:
        loaded(root)
    assert "\n" not in str(info.value)


def test_other_columns(root):
    write(root / "train.parquet", [encode(1)], [0], ("picture", "label"))
    with pytest.raises(UsageError, match=r"expected images in img, image.*, got 1 rows of picture, label in \S+"):
        loaded(root)


def test_no_rows(root):
    pq.write_table(pa.table({"img": [], "label": []}), root / "train.parquet")
    with pytest.raises(UsageError, match=r"got 0 rows of img, label in \S+train.parquet"):
        loaded(root)


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ([{"bytes": None, "path": "/data/1.png"}] * 2, "only the path '/data/1.png', without the bytes of the file,"),
        ([{"path": "1.png"}] * 2, "only the path '1.png', without the bytes of the file,"),
        (["1.png", "2.png"], "only the path '1.png', without the bytes of the file,"),
        ([[1, 2], [3, 4]], "a list"),
        ([None, {"bytes": b"", "path": None}], "an empty cell"),
    ],
)
def test_cells_without_an_image(root, cells, found):
    pq.write_table(pa.table({"image": cells, "label": [0, 1]}), root / "train.parquet")
    with pytest.raises(
        UsageError, match=rf"expected an image as \{{bytes, path\}} .*, got {found} in \S+train.parquet row 0; correct"
    ):
        loaded(root)


@pytest.mark.parametrize("label", ["cat", -1, 0.5, None, 2**63])
def test_labels_that_are_no_class(root, label):
    kind = pa.uint64() if label == 2**63 else None
    rows = [{"bytes": encode(1), "path": None}]
    pq.write_table(pa.table({"img": rows, "label": pa.array([label], kind)}), root / "train.parquet")
    with pytest.raises(UsageError, match=f"its label as 0, 1, 2, ..., got the label {label!r} in"):
        loaded(root)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (([1, 2], [1, 2]), r"labels 1..2 \(2 classes\) in train and 1..2 \(2 classes\) in test: class 0 has no train"),
        (([0, 3], [0, 3]), r"labels 0..3 \(2 classes\) in train and 0..3 .* in test: class 1 has no train image"),
        (([2**40, 2**40 + 1],) * 2, r"labels 1099511627776..1099511627777 .*: class 0 has no train image"),
        (
            ([0, 1], [0, 1, 2]),
            r"0..1 \(2 classes\) in train and 0..2 \(3 classes\) in test: class 2 has no train image",
        ),
        (([0, 1, 2], [0, 1]), r"0..2 \(3 classes\) in train and 0..1 \(2 classes\) in test: class 2 has no test image"),
        (([0, 0], [0]), r"0..0 \(1 class\) in train and 0..0 \(1 class\) in test: one class leaves nothing to tell"),
    ],
)
def test_labels_are_counted_over_both_splits_before_an_image_is_read(root, labels, found):
    for split, of_split in zip(("train", "test"), labels, strict=True):
        write(root / f"{split}.parquet", [b"no image"] * len(of_split), of_split)
    with pytest.raises(
        UsageError, match=f"numbered from 0 without gaps and each in both splits of photos, got .*{found}"
    ):
        loaded(root)


def test_a_damaged_image(root):
    write(root / "train.parquet", [encode(1), b"nothing"], [0, 1])
    with pytest.raises(UsageError, match=r"cannot read the image \S+train.parquet row 1"):
        loaded(root)


def test_without_pyarrow(root, monkeypatch):
    write(root / "train.parquet", [encode(1)], [0])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'robust-ssl-bench\[parquet\]'"):
        loaded(root)
