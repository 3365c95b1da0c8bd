"""The store: what a run folder holds and where. A finished cell is found again and never run twice.

    OUT/manifest.json, .lock                what was asked, where it was made; who writes here (see bench.storage.lock)
    OUT/runs/<method>-s<seed>/run.json      a Record without its parts: settings, environment, status
                             /train.json, encoder.safetensors; checkpoints/ until training is finished
                             /probes/<protocol>.json, <protocol>.safetensors; heads/ until a head is trained
                             /results/<protocol>-<attack>-<eps>.json               l2_<eps> of an attack in l2
                             /adversarial/<protocol>-<attack>-<hash>.safetensors   what the ranked attacks returned
                             /audit.json                                           an Audits
                             /shift.json                                           an EncoderShift
                             /examples/<protocol>.json                             an Examples: pictures for the report
                             /snapshots/<percent>.json, <percent>.safetensors      the encoder on the way
                             /curve.json                                           a Curve: what they are worth
                             /aside/<n>/                                           what other code made
    OUT/results.csv, leaderboard.csv, figures/, report.pdf, report.html     derived, rebuilt at will

Every JSON file ends with its checksum, and every file of tensors has its hash in one. Of two files that belong
together the one that names the other is written last. A damaged file is named, put aside, and made again.
Reading needs no torch; the functions that handle tensors import it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from bench.names import eps_name
from bench.record import Audit, EncoderShift, EvalResult, Manifest, ProbeResult, Record, TrainResult
from bench.spec import Data, Norm, RunSpec, UsageError
from bench.storage.contents import Audits as Audits
from bench.storage.contents import Beat as Beat
from bench.storage.contents import Curve as Curve
from bench.storage.contents import Example as Example
from bench.storage.contents import Examples as Examples
from bench.storage.contents import Point as Point
from bench.storage.contents import Snapshot as Snapshot
from bench.storage.disk import DiskError, is_there, listed, move, put_aside, remove_file, write_bytes
from bench.storage.files import Damaged, load_tensors, read, save, save_tensors, sealed, sha256

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
ASIDE = "aside"
CELLS = ("probes", "results", "adversarial")  # the folders of what is made from a trained encoder
D = TypeVar("D", bound=Data)


def write_text(path: Path, text: str) -> None:
    """A derived file in UTF-8, atomically. Raises DiskError."""
    write_bytes(path, text.encode())


def load_manifest(folder: Path, links: bool = True) -> Manifest:
    """What a run folder was asked for. Raises UsageError if the folder is none, Damaged if its manifest is."""
    check_folder(folder)
    if links:  # looked for in the whole folder, once in a command: it takes longer with each of its runs
        refuse_links(folder)
    return read(Manifest, folder / MANIFEST)


def check_folder(folder: Path) -> None:
    """Raises UsageError unless this is the folder of a run."""
    if not is_there(folder / MANIFEST):
        raise UsageError(f"expected the folder of a run, got {folder}: it has no {MANIFEST}")


def refuse_links(folder: Path) -> None:
    """Raises UsageError at a link in the folder of a run: it may lead out of it. The folder itself may be one."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(parent, name)):
                raise UsageError(f"expected no links in the folder of a run, got {os.path.join(parent, name)!r}")


def load_records(folder: Path, damaged: list[Damaged] | None = None) -> list[Record]:
    """All runs of a folder in the manifest's order, those not begun included; ``damaged`` as in ``record``."""
    return [RunFolder(folder, spec).record(damaged) for spec in load_manifest(folder).runs]


def load_examples(folder: Path, damaged: list[Damaged] | None = None) -> dict[str, list[Examples]]:
    """Name of a run -> its pictures, for the runs of a folder that have any; ``damaged`` as in ``record``."""
    stored = {spec.name: RunFolder(folder, spec).examples(damaged) for spec in load_manifest(folder).runs}
    return {name: examples for name, examples in stored.items() if examples}


def load_curves(folder: Path, damaged: list[Damaged] | None = None) -> dict[str, list[Point]]:
    """Name of a run -> the points of its curve, for the runs that have any; ``damaged`` as in ``record``."""
    curves = {spec.name: RunFolder(folder, spec).curve(damaged) for spec in load_manifest(folder).runs}
    return {name: points for name, points in curves.items() if points}


class RunFolder:
    """The folder of one run: what is finished is found, what is new is put, one file for each cell."""

    def __init__(self, out: Path, spec: RunSpec) -> None:
        self.spec = spec
        self.out = out
        self.path = out / "runs" / spec.name
        self.there = is_there(out)

    def record(self, damaged: list[Damaged] | None = None) -> Record:
        """Everything known so far. Damaged files are left out and put into ``damaged``, or raised where it is None."""
        own = self._read(Record, "run.json", damaged)
        audits = self._read(Audits, "audit.json", damaged)
        cells = self._read_all(EvalResult, "results", damaged)
        parts = {
            "train": self._read(TrainResult, "train.json", damaged),
            "probes": self._read_all(ProbeResult, "probes", damaged),
            "results": [result for result in cells if not result.failed],
            "failed": [result for result in cells if result.failed],
            "audits": audits.audits if audits else [],
            "shift": self._read(EncoderShift, "shift.json", damaged),
        }
        try:
            return Record(**dict(own or Record(spec=self.spec)) | parts)
        except ValidationError as error:
            raise Damaged(self.path, error.errors()[0]["msg"]) from None

    def save_record(self, record: Record) -> None:
        """Settings, environment and status; the parts have files of their own."""
        parts: dict[str, Any] = {"train": None, "probes": [], "results": [], "failed": [], "audits": [], "shift": None}
        save(self.place("run.json"), record.model_copy(update=parts))

    def place(self, name: str) -> Path:
        """Where a file of this run is written. Raises DiskError where the folder of all runs was there and is not."""
        if self.there and not is_there(self.out):
            raise DiskError(f"the folder {self.out} has vanished; with it back, the same command goes on")
        return self.path / name

    # ------------------------------------------------------------ training

    def trained(self) -> "tuple[TrainResult, dict[str, Tensor]] | None":
        """The result of a training that has ended, and the encoder's weights; none where it did not finish."""
        result = self._read(TrainResult, "train.json")
        if result is None:
            return None
        if result.status != "finished":
            return result, {}
        return result, load_tensors(self.path / "encoder.safetensors", result.encoder_sha256)

    def save_trained(self, result: TrainResult, encoder: "dict[str, Tensor]") -> None:
        """The encoder first, the result last: a result that is there is complete."""
        if result.status == "finished":
            save_tensors(self.place("encoder.safetensors"), encoder)
            result = result.model_copy(update={"encoder_sha256": sha256(encoder)})
        save(self.place("train.json"), result)
        self.forget_training(result)

    def forget_training(self, result: TrainResult) -> None:
        """Remove what a training that has ended needs no more; one that diverged keeps its checkpoints."""
        from bench.storage.checkpoint import remove_checkpoints

        if result.status != "diverged":
            remove_checkpoints(self.path / "checkpoints")
        self.remove("beat.json")

    def checkpoint(self) -> "tuple[dict[str, Any] | None, list[Damaged]]":
        """The newest state of a training that has not ended, and what is wrong with newer ones (checkpoint.py)."""
        from bench.storage.checkpoint import load_checkpoint

        return load_checkpoint(self.path / "checkpoints")

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """The next generation of the state."""
        from bench.storage.checkpoint import save_checkpoint

        save_checkpoint(self.place("checkpoints"), state)

    def reached(self) -> int:
        """How much of this run is stored: it grows with each checkpoint of later updates and each part that is made.

        What is damaged counts as missing; no tensor is read.
        """
        from bench.storage.checkpoint import newest_value

        record = self.record([])
        updates = record.train.updates if record.train else newest_value(self.path / "checkpoints", "updates")
        cells = sum(1 + len(result.stages) for result in record.results)
        others = len(record.probes) + len(record.audits) + len(self.curve([])) + (record.shift is not None)
        return (updates or 0) + cells + others

    def beat(self) -> Beat | None:
        """How far the training was when it was last heard of; None where that is not known."""
        try:
            return self._read(Beat, "beat.json")
        except Damaged:
            return None

    def save_beat(self, beat: Beat) -> None:
        """Not synced: it is written often, and may be lost in a power cut. Raises DiskError."""
        write_bytes(self.place("beat.json"), sealed(beat.model_dump_json(indent=1)), synced=False)

    # ------------------------------------------------------------ snapshots

    def snapshot(self, percent: int) -> "tuple[Snapshot, dict[str, Tensor]] | None":
        """The encoder at a mark of the training."""
        snapshot = self._read(Snapshot, f"snapshots/{percent}.json")
        if snapshot is None:
            return None
        return snapshot, load_tensors(self.path / "snapshots" / f"{percent}.safetensors", snapshot.sha256)

    def save_snapshot(self, snapshot: Snapshot, encoder: "dict[str, Tensor]") -> None:
        """The weights first: a snapshot that is there is complete."""
        save_tensors(self.place(f"snapshots/{snapshot.percent}.safetensors"), encoder)
        named = snapshot.model_copy(update={"sha256": sha256(encoder)})
        save(self.place(f"snapshots/{snapshot.percent}.json"), named)

    def curve(self, damaged: list[Damaged] | None = None) -> list[Point]:
        """The points that were measured; ``damaged`` as in ``record``."""
        curve = self._read(Curve, "curve.json", damaged)
        return curve.points if curve else []

    def save_curve(self, points: list[Point]) -> None:
        """All of them, in one file."""
        save(self.place("curve.json"), Curve(points=points))

    # ------------------------------------------------------------ cells

    def probe(self, protocol: str) -> "tuple[ProbeResult, dict[str, Tensor]] | None":
        """A probe that was fitted."""
        probe = self._read(ProbeResult, f"probes/{protocol}.json")
        if probe is None:
            return None
        return probe, load_tensors(self.path / "probes" / f"{protocol}.safetensors", probe.sha256)

    def save_probe(self, probe: ProbeResult, tensors: "dict[str, Tensor]") -> None:
        """The tensors first: a probe that is there is complete."""
        save_tensors(self.place(f"probes/{probe.protocol}.safetensors"), tensors)
        save(self.place(f"probes/{probe.protocol}.json"), probe.model_copy(update={"sha256": sha256(tensors)}))
        self.forget_head_state(probe.protocol)

    def head_state(self, protocol: str) -> dict[str, Any] | None:
        """The newest state of a head whose training has not ended; one that is damaged counts as missing."""
        from bench.storage.checkpoint import load_checkpoint

        return load_checkpoint(self.path / "heads" / protocol)[0]

    def save_head_state(self, protocol: str, state: dict[str, Any]) -> None:
        """The next generation of it."""
        from bench.storage.checkpoint import save_checkpoint

        save_checkpoint(self.place(f"heads/{protocol}"), state)

    def forget_head_state(self, protocol: str) -> None:
        """Remove what a head that is finished needs no more."""
        from bench.storage.checkpoint import remove_checkpoints

        remove_checkpoints(self.path / "heads" / protocol)

    def result(self, protocol: str, attack: str, eps: float, norm: Norm = "linf") -> EvalResult | None:
        """A cell that was measured."""
        return self._read(EvalResult, f"results/{protocol}-{attack}-{eps_name(eps, norm)}.json")

    def save_result(self, result: EvalResult) -> None:
        """And forget what the attack returned before."""
        save(self.place(result_file(result)), result)
        if result.images_sha256:
            self.forget_images(result.protocol, result.attack)

    def forget_images(self, protocol: str, attack: str) -> None:
        """Remove the images of an attack that its last result does not name."""
        last = self.last_with_images(protocol, attack)
        kept = images_file(last) if last is not None else ""
        for name in self.names("adversarial"):
            if cell(name) == f"{protocol}-{attack}" and name != kept:
                self.remove(name)

    def adversarial(self, protocol: str, attack: str) -> "Tensor | None":
        """What an attack returned for the first images, (K, C, H, W) in [0, 1], when its last result was stored."""
        result = self.last_with_images(protocol, attack)
        if result is None:
            return None
        return load_tensors(self.path / images_file(result), result.images_sha256)["images"]

    def save_adversarial(self, protocol: str, attack: str, images: "Tensor") -> str:
        """Keep them beside those of the result before, which stays whole until the next is stored; their hash."""
        digest = sha256({"images": images})
        save_tensors(self.place(f"adversarial/{protocol}-{attack}-{digest[:16]}.safetensors"), {"images": images})
        return digest

    def audits(self) -> list[Audit]:
        """The audits of the protocols, in the order in which they were made."""
        audits = self._read(Audits, "audit.json")
        return audits.audits if audits else []

    def save_audits(self, audits: list[Audit]) -> None:
        """All of them, in one file."""
        save(self.place("audit.json"), Audits(audits=audits))

    def shift(self) -> EncoderShift | None:
        """How far the features move, once it was measured."""
        return self._read(EncoderShift, "shift.json")

    def save_shift(self, shift: EncoderShift) -> None:
        """That of the trained encoder."""
        save(self.place("shift.json"), shift)

    def examples(self, damaged: list[Damaged] | None = None) -> list[Examples]:
        """The pictures of each protocol; ``damaged`` as in ``record``."""
        return self._read_all(Examples, "examples", damaged)

    def save_examples(self, examples: Examples) -> None:
        """The pictures of one protocol."""
        save(self.place(f"examples/{examples.protocol}.json"), examples)

    # ------------------------------------------------------------ files

    def names(self, kind: str) -> list[str]:
        """The files of one of CELLS, as ``results/linear-pgd-0.100000.json``; not those that were put aside."""
        names = listed(self.path / kind)
        return [f"{kind}/{name}" for name in names if name.endswith((".json", ".safetensors"))]

    def put_aside(self, *names: str) -> None:
        """Rename files that are there to ``<name>.damaged``, each to stay before the next. Raises DiskError."""
        for name in names:
            put_aside(self.path / name)

    def set_aside(self, folder: str, names: list[str]) -> None:
        """Move files and folders that are there into a folder of this run, each before the next. Raises DiskError."""
        for name in names:
            move(self.place(name), self.place(f"{folder}/{name}"))

    def remove(self, name: str) -> None:
        """A file, if it is there. Raises DiskError."""
        remove_file(self.path / name)

    def last_with_images(self, protocol: str, attack: str) -> EvalResult | None:
        """The result that names what is kept of an attack. PGD goes by growing eps, so the largest is the last."""
        results = self._read_all(EvalResult, "results", None, f"{protocol}-{attack}")
        return max((result for result in results if result.images_sha256), key=lambda result: result.eps, default=None)

    def _read_all(self, kind: type[D], folder: str, damaged: list[Damaged] | None, only: str = "") -> list[D]:
        names = [n for n in self.names(folder) if n.endswith(".json") and (not only or cell(n) == only)]
        return [data for name in names if (data := self._read(kind, name, damaged)) is not None]

    def _read(self, kind: type[D], name: str, damaged: list[Damaged] | None = None) -> D | None:
        """A part that is there; one that is damaged is put into the list, or raised where there is no list."""
        try:
            return read(kind, self.path / name) if is_there(self.path / name) else None
        except Damaged as error:
            if damaged is None:
                raise
            damaged.append(error)
            return None


def result_file(result: EvalResult) -> str:
    """Its place in the folder of its run."""
    return f"results/{result.protocol}-{result.attack}-{eps_name(result.eps, result.norm)}.json"


def cell(name: str) -> str:
    """``<protocol>-<attack>`` of a file in results or adversarial."""
    return name.partition("/")[2].rpartition("-")[0]


def images_file(result: EvalResult) -> str:
    """The place of the images that a result names."""
    return f"adversarial/{result.protocol}-{result.attack}-{result.images_sha256[:16]}.safetensors"
