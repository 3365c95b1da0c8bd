"""Whether each machine has the images that were asked for: numbers from other copies of them would look comparable."""

import platform

from bench.ranks import ALONE, Ranks
from bench.spec import DataInfo, UsageError


def check_copies(own: DataInfo, expected: DataInfo | None = None, ranks: Ranks = ALONE) -> None:
    """Raises UsageError, on every rank, where one of them has other images than ``expected``, or else than rank 0.

    What is expected counts on rank 0. All ranks have to call it.
    """
    found = ranks.collect((platform.node(), own))
    complaint = ranks.tell(next(filter(None, [difference(node, each, expected or own) for node, each in found]), ""))
    if complaint:
        raise UsageError(complaint)


def difference(node: str, found: DataInfo, expected: DataInfo) -> str:
    """What to say of the images on a node; "" where they are those that are expected."""
    if hashes(found) == hashes(expected):
        return ""
    return (
        f"expected the images of the command ({shown(expected)}) on every machine, got others ({shown(found)}) on "
        f"{node}; copy the same files there, decoded by the same versions of packages, and give the same command again"
    )


def hashes(data: DataInfo) -> tuple[str, str]:
    """SHA-256 of the training images, of the test images."""
    return data.train_sha256, data.test_sha256


def shown(data: DataInfo) -> str:
    """The beginning of the hashes, for people."""
    train, test = hashes(data)
    return f"train {train[:12]}, test {test[:12]}"
