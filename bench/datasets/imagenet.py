"""ImageNet: {train,val}/<wnid>/*.JPEG, all classes or those of --classes FILE, at 256 pixels (Russakovsky, 2015)."""

from pathlib import Path
from typing import ClassVar
from unicodedata import normalize

from bench.data.cache import Listing
from bench.data.images import EncodedDataset, Split
from bench.datasets.folder import class_folders, listing_of, same_classes
from bench.spec import UsageError
from bench.text import read_text

CENTRE = 224 / 256  # of the side: what is trained on and evaluated, as usual
LISTED = 5  # wnids that one line shows


class Dataset(EncodedDataset):
    """Resized to 256 pixels and cut square once; views of 224 pixels, evaluated on the central 224.

    Eps as usual for ImageNet (RobustBench). The paper has no setting for it: those of the methods are for CIFAR-10.
    """

    encoder = "torchvision:resnet18"
    eps = (2 / 255, 4 / 255)
    main_eps = 4 / 255
    image_size = 256
    centre = CENTRE
    takes_classes = True
    OVERRIDES: ClassVar = {"all": {"view_share": CENTRE}}

    def listing(self, root: Path, split: Split, classes: Path | None) -> Listing:
        folder = root / {"train": "train", "test": "val"}[split]
        if classes is None:
            return listing_of("imagenet", folder, same_classes(root, "train", "val"))
        chosen = sorted(class_list(classes))
        missing = sorted({*chosen} - class_folders(folder).keys())
        if missing:
            more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
            raise UsageError(
                f"expected the {len(chosen)} classes of {classes} as folders in {folder}, "
                f"found no {', '.join(missing[:LISTED])}{more}; correct the list or add the folders"
            )
        return listing_of(f"imagenet-{classes.stem}", folder, chosen)


def class_list(file: Path) -> list[str]:
    """The first word of each line: a wnid such as n01440764; # begins a remark. Raises UsageError."""
    lines = read_text(file, "class list").split("\n")
    wnids = [normalize("NFC", line.split()[0]) for line in (line.partition("#")[0].strip() for line in lines) if line]
    if len(wnids) < 2:
        raise UsageError(f"expected at least 2 classes in {file}, got {len(wnids)}; write a wnid on each line")
    twice = sorted({wnid for wnid in wnids if wnids.count(wnid) > 1})
    if twice:
        raise UsageError(f"expected each class once in {file}, got {', '.join(twice[:LISTED])} twice; remove one")
    return wnids
