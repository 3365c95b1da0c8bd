"""The folder of a run that is being made: what is saved carries the hash of its code (bench.identity.source)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.identity.source import AUDIT, CURVE, SHIFT, TRAINING, Sources, attack_part, codes, head_part
from bench.record import Audit, EncoderShift, EvalResult, ProbeResult, TrainResult
from bench.spec import RunSpec
from bench.storage.files import save
from bench.storage.store import Curve, Point, RunFolder

if TYPE_CHECKING:
    from torch import Tensor

Made = TypeVar("Made", TrainResult, ProbeResult, EvalResult, Audit, EncoderShift)


class Signed(RunFolder):
    """``found``: the files behind each part of the run, as they were before they were loaded."""

    def __init__(self, out: Path, spec: RunSpec, found: Sources) -> None:
        super().__init__(out, spec)
        self.found, self.codes = found, codes(found)

    def signed(self, part: str, made: Made) -> Made:
        """The same with the hash of the code behind a part."""
        return made.model_copy(update={"code": self.codes[part]})

    def save_trained(self, result: TrainResult, encoder: "dict[str, Tensor]") -> None:
        super().save_trained(self.signed(TRAINING, result), encoder)

    def save_probe(self, probe: ProbeResult, tensors: "dict[str, Tensor]") -> None:
        super().save_probe(self.signed(head_part(probe.protocol), probe), tensors)

    def head_state(self, protocol: str) -> dict[str, Any] | None:
        """None also where other code has made it: the head is trained from the start."""
        state = super().head_state(protocol)
        if state is None or state.pop("code", "") == self.codes[head_part(protocol)]:
            return state
        self.forget_head_state(protocol)
        return None

    def save_head_state(self, protocol: str, state: dict[str, Any]) -> None:
        super().save_head_state(protocol, state | {"code": self.codes[head_part(protocol)]})

    def save_result(self, result: EvalResult) -> None:
        super().save_result(self.signed(attack_part(result.attack), result))

    def save_audits(self, audits: list[Audit]) -> None:
        super().save_audits([self.signed(AUDIT, audit) for audit in audits])

    def save_shift(self, shift: EncoderShift) -> None:
        super().save_shift(self.signed(SHIFT, shift))

    def save_curve(self, points: list[Point]) -> None:
        save(self.place("curve.json"), Curve(points=points, code=self.codes[CURVE]))
