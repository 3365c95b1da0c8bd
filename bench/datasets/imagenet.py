"""ImageNet: {train,val}/<wnid>/*.JPEG, all classes or those of --classes FILE, at 256 pixels (Russakovsky, 2015)."""

from pathlib import Path
from typing import ClassVar

from bench.cache import Listing
from bench.data import EncodedDataset, Split
from bench.datasets.folder import class_names, listing_of
from bench.spec import UsageError

CENTRE = 224 / 256  # of the side: what is trained on and evaluated, as usual
LARGEST = 2**20  # bytes of a class list
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
        known = class_names(folder)
        if classes is None:
            alone = sorted({*known} ^ {*class_names(root / "train")})
            if alone:
                listed = ", ".join(alone[:LISTED])
                raise UsageError(f"expected the same classes in train and val of {root}, found in one only: {listed}")
            return listing_of("imagenet", folder, known)
        chosen = sorted(class_list(classes))
        missing = [wnid for wnid in chosen if wnid not in set(known)]
        if missing:
            more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
            raise UsageError(
                f"expected the {len(chosen)} classes of {classes} as folders in {folder}, "
                f"found no {', '.join(missing[:LISTED])}{more}; correct the list or add the folders"
            )
        return listing_of(f"imagenet-{classes.stem}", folder, chosen)


def class_list(file: Path) -> list[str]:
    """The first word of each line: a wnid such as n01440764; # begins a remark. Raises UsageError."""
    if not file.is_file() or file.stat().st_size > LARGEST:
        raise UsageError(f"expected a class list of at most {LARGEST} bytes, got {file}; name a file with its wnids")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise UsageError(f"cannot read the class list {file}: {reason}; name a file with a wnid on each line") from None
    wnids = [line.split()[0] for line in (line.partition("#")[0].strip() for line in lines) if line]
    if len(wnids) < 2:
        raise UsageError(f"expected at least 2 classes in {file}, got {len(wnids)}; write a wnid on each line")
    twice = sorted({wnid for wnid in wnids if wnids.count(wnid) > 1})
    if twice:
        raise UsageError(f"expected each class once in {file}, got {', '.join(twice[:LISTED])} twice; remove one")
    return wnids
