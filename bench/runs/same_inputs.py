"""Whether each machine has the code and the images that were asked for: numbers from others would look comparable."""

import platform

from bench.distributed.ranks import ALONE, Ranks
from bench.identity import source
from bench.record import DataInfo
from bench.spec import RunSpec


def check_extra(extra: str, ranks: Ranks) -> None:
    """Raises Unfit, on every rank, where one of them has other extra data than rank 0. All ranks have to call it."""
    if others := ranks.tell([other for other in ranks.collect(extra) if other != extra]):
        raise source.Unfit(f"expected {extra or 'no extra data'} on every GPU of a run, got {others[0] or 'none'}")


def check_copies(spec: RunSpec, own: DataInfo, expected: DataInfo | None = None, ranks: Ranks = ALONE) -> None:
    """Raises Unfit, on every rank, where one of them has other code for this run than rank 0, or other images.

    The images are to be those ``expected`` on rank 0, or else its own. All ranks have to call it.
    """
    code, images = source.source_hash(spec) if ranks.size > 1 else "", expected or own
    complaint = ""
    for node, other, data in ranks.collect((platform.node(), code, own)):
        complaint = complaint or source.difference(node, other, code) or difference(node, data, images)
    if complaint := ranks.tell(complaint):
        raise source.Unfit(complaint)


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
