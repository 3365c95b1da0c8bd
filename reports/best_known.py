"""What is left of a number under everything that was tried: the worst case per image over every attack at its threat.

It is the least upper bound on the robust accuracy that a run folder knows. Which attacks there are differs from run to
run, so it ranks nothing.
"""

import numpy as np
from numpy.typing import NDArray

from bench.names import CORRUPTIONS
from bench.record import EvalResult, Record


def best_known(record: Record, result: EvalResult) -> int | None:
    """How many of the images of ``result`` stand under every attack on the image that ran in its ball; None on crops.

    In its ball is what has its norm and an eps that is no larger: the attacks that were asked for and the curve, of
    this project and of the user's own files, stopped ones too, the images that are wrong without an attack, and, in
    l-inf, those that the audit's own attacks broke. An attack that saw fewer images counts on those it saw.
    """
    if result.threat_space != "image":
        return None
    stands = _stands(result)
    for other in record.results:
        if other.protocol == result.protocol and _in_ball(other, result):
            seen = _stands(other)[: len(stands)]  # one fixed test order: the first images are shared
            stands[: len(seen)] &= seen
    for audit in record.audits:
        if audit.protocol == result.protocol and result.norm == "linf" and audit.eps <= _largest(result):
            broken = {place for places in audit.broken.values() for place in places if place < len(stands)}
            stands[list(broken)] = False
    return int(stands.sum())


def _in_ball(other: EvalResult, result: EvalResult) -> bool:
    """Whether what this attack returns lies in the ball of the result: the clean image lies in every one."""
    attack = other.threat_space == "image" and other.attack != CORRUPTIONS  # which are an average case
    same = attack and (other.norm == result.norm or other.eps == 0)
    return same and other.eps <= _largest(result)


def _largest(result: EvalResult) -> float:
    """Its eps, and what rounding adds."""
    return result.eps * (1 + 1e-9)


def _stands(result: EvalResult) -> NDArray[np.bool_]:
    """(n,): where the image stands."""
    return np.array(np.frombuffer(result.outcomes.encode(), dtype=np.uint8) == ord("1"))
