"""The linear probe behind a ranked number (A20, A21 of protocol 3.3): does it decide, and what chose it?"""

from bench.audit.checks.attacks import exceeds, judged, warn
from bench.audit.checks.subject import AuditCheck, Subject
from bench.protocols.common.base import BaseProtocol, protocol_of
from bench.record import Check, ProbeResult
from bench.spec import AuditLevel

BAND = 0.15  # A20, [P] of protocol 3.3: calibrated on tests/zoo
COPIES = 0.01  # A21: of the test images


@judged("A20")
def probe_band(subject: Subject, n: int) -> Check:
    """How much robust accuracy falls with the probe at lambda/10, or rises at 10 lambda: WARN above 15 points.

    Of a head that has chosen a learning rate: how much another of the rates would have given. N/A where nothing was
    chosen: a classifier's own logits, a vote.
    """
    if subject.probe is not None and (subject.probe.chosen == 0 or (subject.probe.learning_rate and not subject.band)):
        return Check(id="A20", verdict="N/A", note="the head has no penalty that could decide")
    if len(subject.band) < 2 or (subject.probe is not None and subject.probe.penalty and len(subject.band) != 3):
        return Check(id="A20", verdict="NOT_RUN", note="expected the probe at 3 penalties")
    total = subject.band[0][2]
    if subject.probe is not None and subject.probe.learning_rate:
        robust = {rate: correct for rate, correct, _ in subject.band}
        moved = max(robust.values()) - robust[subject.probe.learning_rate]
    else:
        (_, less, _), (_, chosen, _), (_, more, _) = sorted(subject.band)
        moved = max(chosen - less, more - chosen)
    verdict = warn(exceeds(moved, total, BAND))
    return Check(id="A20", verdict=verdict, value=moved / total, threshold="WARN > 15 points", n=total)


def no_test_set_selection(subject: Subject) -> Check:
    """Test images whose pixels are also a training image's: FAIL above 1 %, or where test images may have chosen.

    They have not where the log shows the split: the penalty is the one that protocol 1.2 takes from the counts on
    every fifth training image, and training and test images have different hashes.
    """
    probe, count = subject.probe, subject.duplicates
    if probe is None or count is None:
        return Check(id="A21", verdict="NOT_RUN", note="no probe or no training images to look at")
    fitted = probe.chosen > 0  # 0: a classifier's own logits
    same = bool(subject.stored.get("train")) and subject.stored["train"] == subject.stored.get("test")
    fine = (
        not same
        and count <= COPIES * len(subject.images)
        and (not fitted or chosen_on_training_images(probe, protocol_of(subject.spec, subject.protocol)))
    )
    return Check(
        id="A21",
        verdict="PASS" if fine else "FAIL",
        value=count,
        threshold="FAIL above 1 % of copies, or if test images may have chosen",
        n=len(subject.images),
        note=f"{count} test images are training images too" + ("" if fitted else "; no probe was fitted"),
    )


def chosen_on_training_images(probe: ProbeResult, protocol: BaseProtocol) -> bool:
    """Whether its penalty, or learning rate, is the one that the protocol's rule takes of what was counted on every
    fifth training image; with nothing to choose from, the protocol's own."""
    totals = {total for _, _, total in probe.held_out}
    judged = min(probe.train_total // 5, protocol.judged or probe.train_total)
    return totals <= {judged} and probe.chosen == protocol.choice(probe.held_out)


CHECKS: dict[str, tuple[AuditLevel, AuditCheck]] = {
    "A20": ("full", probe_band),
    "A21": ("core", no_test_set_selection),
}
