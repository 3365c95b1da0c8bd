"""Folders of images: what is read and in which order, what is left out and said, what is refused."""

import io
import os
import unicodedata

import pytest
from data_fixtures import numbers, picture
from PIL import Image

from bench.data.images import load_data, remarks
from bench.datasets import folder
from bench.spec import DataSpec, UsageError
from bench.text import printable


def encode(format="JPEG", value=9, **options):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 7)).save(file, format, **options)
    return file.getvalue()


def put(root, *names):
    """Pictures 0, 1, 2, ... by their names, which may be bytes."""
    for number, name in enumerate(names):
        file = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as opened:
            opened.write(picture(number))


def loaded(root):
    """Training and test images; decoded beside the folder."""
    return load_data(folder.Dataset(), DataSpec(name="folder", path=str(root), root=str(root.parent / "cache")))


def listed(root, split="train"):
    """(number of the picture, label) in the order of the listing."""
    listing = folder.Dataset().listing(root, split, None)
    found = [Image.open(file).getpixel((0, 0))[0] for _, file in listing.images()]
    return list(zip(found, listing.labels.tolist(), strict=True))


@pytest.fixture
def pets(tmp_path):
    """Two classes; the training images are 0 and 1 (cats), 2 (dog)."""
    put(tmp_path / "pets", "train/cat/a.png", "train/cat/b.PNG", "train/dog/a.png", "test/cat/a.png", "test/dog/a.png")
    return tmp_path / "pets"


def test_reads_what_is_there(pets):
    train, test = loaded(pets)
    assert (train.label, train.classes, train.image_shape, len(test)) == ("pets", 2, (3, 5, 6), 2)
    assert listed(pets) == [(0, 0), (1, 0), (2, 1)]
    assert train.notes == test.notes == ()


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP", "PPM", "TIFF"])
def test_every_format_is_an_image_of_its_class(pets, format):
    (pets / "train" / "dog" / f"b.{format.lower()}").write_bytes(encode(format))
    train, _ = loaded(pets)
    assert train.labels.tolist().count(1) == 2
    assert train.notes == ()[: format != "WEBP"] or "1 webp" in train.notes[-1]


def test_folders_inside_a_class_are_of_the_class_and_said(pets):
    put(pets, "train/dog/more/x.png", "train/dog/more/deep/y.png")
    (pets / "train" / "dog" / "more" / "round").symlink_to(pets / "train" / "dog")
    train, _ = loaded(pets)
    assert train.labels.tolist().count(1) == 3
    said = "images of train that lie in folders inside their class, and are taken as of it: 2 (dog/more/deep/y.png)"
    assert train.notes == (said,)


def test_what_is_no_image_of_a_class_is_counted_by_kind(pets):
    put(pets, "train/@eaDir/thumb.png", "train/cat/@eaDir/a.png/thumb.png", "train/.ipynb_checkpoints/a.png")
    put(pets, "train/__MACOSX/cat/._a.png", "train/cat/._a.png", "train/cat/Thumbs.db", "train/loose.png")
    put(pets, "train/cat/film.gif", "train/cat/notes.txt", "train/dog/read.TXT", "train/dog/README")
    (pets / "train" / ".empty").mkdir()
    train, test = loaded(pets)
    assert (len(train), train.classes, test.notes) == (3, 2, ())
    (said,) = train.notes
    kinds = said.removeprefix("files of train that are left out: ").split(", ")
    assert [each.partition(" (")[0] for each in kinds] == [
        "1 .gif", "2 .txt", "1 beside the classes", "6 hidden", "1 without an ending"
    ]  # fmt: skip
    assert "2 .txt (cat/notes.txt)" in kinds


@pytest.mark.parametrize(
    ("train", "test", "label"),
    [
        ([("JPEG", 90)] * 4, [("JPEG", 90)] * 4, "pets-jpeg90"),
        ([("PNG", 0)] + [("JPEG", 20)] * 3, [("JPEG", 20)] * 4, "pets-part-jpeg20"),
        ([("PNG", 0)] * 4, [("PNG", 0)] * 3 + [("JPEG", 75)], "pets-part-jpeg75"),
        ([("JPEG", 60)] + [("JPEG", 75)] * 3, [("JPEG", 95)] * 4, "pets-jpeg60to95"),
        ([("WEBP", 80)] * 4, [("WEBP", 80)] * 4, "pets-webp"),
    ],
)
def test_the_name_says_what_the_files_have_lost(tmp_path, train, test, label):
    for split, files in (("train", train), ("test", test)):
        for number, (format, quality) in enumerate(files):
            file = tmp_path / "pets" / split / "ab"[number % 2] / f"{number}.{format.lower()}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(format, 10 * number, **({"quality": quality} if quality else {})))
    images, _ = loaded(tmp_path / "pets")
    assert images.label == label
    mixed = "images of train by what their files have lost: "
    assert [each for each in images.notes if each.startswith(mixed)] == {
        "pets-part-jpeg20": [f"{mixed}3 jpeg20, 1 without loss"],
        "pets-jpeg60to95": [f"{mixed}4 jpeg60to75"],
    }.get(label, [])


class TestNames:
    def test_bytes_that_are_no_text_are_read_and_printed(self, pets):
        put(pets, b"train/dog/caf\xe9.png", b"train/dog/caf\xe9.txt")
        train, _ = loaded(pets)
        assert train.labels.tolist().count(1) == 2
        assert train.notes == (r"files of train that are left out: 1 .txt (dog/caf\xe9.txt)",)
        bad = os.fsencode(pets) + b"/train/dog/\xff.png"
        with open(bad, "wb") as file:
            file.write(b"nothing")
        with pytest.raises(UsageError, match=r"cannot read the image \S+/train/dog/\\xff.png: no format"):
            loaded(pets)

    def test_a_dataset_and_classes_of_such_names(self, tmp_path):
        root = os.fsencode(tmp_path) + b"/b\xe4ume"
        put(os.fsdecode(root), b"train/\xe9/0.png", b"train/a/1.png", b"test/\xe9/2.png", b"test/a/3.png")
        train, _ = loaded(tmp_path / os.fsdecode(b"b\xe4ume"))
        assert train.label == r"b\xe4ume"
        assert train.label.encode()
        assert listed(tmp_path / os.fsdecode(b"b\xe4ume")) == [(1, 0), (0, 1)]

    def test_the_order_is_that_of_composed_names(self, tmp_path):
        """Decomposed, an e with an accent would come before f; composed it comes after z."""
        orders = []
        for form in ("NFC", "NFD"):
            names = [unicodedata.normalize(form, name) for name in ("train/é/é.png", "train/é/f.png", "train/z/z.png")]
            put(tmp_path / form, *names, "test/z/a.png", unicodedata.normalize(form, "test/é/a.png"))
            orders.append(listed(tmp_path / form))
        assert orders[0] == orders[1] == [(2, 0), (1, 1), (0, 1)]

    def test_one_class_in_two_spellings(self, tmp_path):
        names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
        put(tmp_path / "set", f"train/{names[0]}/0.png", "train/tea/1.png", f"test/{names[1]}/2.png", "test/tea/3.png")
        assert loaded(tmp_path / "set")[1].labels.tolist().count(0) == 1
        put(tmp_path / "set", f"train/{names[1]}/0.png")
        with pytest.raises(UsageError, match=r"of different names in \S+/train, got two spellings of café; merge them"):
            loaded(tmp_path / "set")

    @pytest.mark.parametrize(
        ("name", "target"),
        [("zzz.png", "/nowhere/x.png"), (os.fsdecode(b"z\xe9.png"), "/nowhere/x.png"), ("self.png", "self.png")],
    )
    def test_a_link_to_nothing(self, pets, name, target):
        link = pets / "train" / "dog" / name
        link.symlink_to(target)
        shown = printable(link).replace("\\", r"\\")
        with pytest.raises(UsageError, match=f"cannot read the image {shown}: a link to nothing; replace or remove"):
            loaded(pets)

    def test_a_pipe_is_no_image(self, pets):
        os.mkfifo(pets / "train" / "dog" / "pipe.png")
        assert "left out: 1 .png (dog/pipe.png)" in loaded(pets)[0].notes[0]


def test_what_was_found_is_said_with_the_name_of_the_data(pets):
    from bench.data.images import data_info

    put(pets, "train/cat/._a.png")
    info = data_info(*loaded(pets))
    assert info.duplicates == 0
    assert remarks(info) == ["pets: files of train that are left out: 1 hidden (cat/._a.png)"]


def test_sizes_that_differ(pets):
    (pets / "train" / "dog" / "a.png").write_bytes(picture(1, size=(7, 5)))
    with pytest.raises(UsageError, match=r"got \S+cat/a.png \(RGB 6x5\) and \S+dog/a.png \(RGB 7x5\)"):
        loaded(pets)


def test_an_unreadable_image(pets):
    (pets / "test" / "dog" / "a.png").write_bytes(picture(1)[:40])
    with pytest.raises(UsageError, match=r"cannot read the image \S+test/dog/a.png"):
        loaded(pets)


def test_classes_that_differ(pets):
    (pets / "test" / "dog").rename(pets / "test" / "hound")
    with pytest.raises(UsageError, match=r"the same classes in train and test of \S+, found in one only: dog, hound"):
        loaded(pets)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match=r"expected a folder for each class in \S+train, found none; make \S+/<class>"):
        loaded(tmp_path)


def test_an_empty_class(pets):
    (pets / "train" / "dog" / "a.png").unlink()
    with pytest.raises(UsageError, match=r"expected images \(\.png, .jpg, .*\) in \S+dog, found none; convert"):
        loaded(pets)


def test_a_single_class(tmp_path):
    put(tmp_path / "set", "train/a/0.png", "train/a/1.png", "test/a/2.png")
    with pytest.raises(
        UsageError, match=r"at least 2 classes, .* of set, got labels 0..0 \(1 class\) in train and 0..0"
    ):
        loaded(tmp_path / "set")


def test_pixels_of_what_is_nested_are_its_own(pets):
    put(pets, "train/dog/a/x.png")
    (pets / "train" / "dog" / "a" / "x.png").write_bytes(picture(77))
    train, _ = loaded(pets)
    assert sorted(numbers(train.images[:])) == [0, 1, 2, 77]
