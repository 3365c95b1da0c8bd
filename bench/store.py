"""The store: the only writer of files. Atomic, checksummed; a finished cell is found again and never run twice.

    OUT/manifest.json                       what was asked, where it was made
    OUT/runs/<method>-s<seed>/run.json      a Record without its parts: settings, environment, status
                             /train.json, encoder.safetensors; checkpoint.pt while training is interrupted
                             /probes/<protocol>.json, <protocol>.safetensors
                             /results/<protocol>-<attack>-<eps>.json
                             /adversarial/<protocol>-<attack>.safetensors   what the ranked attacks returned
                             /audit.json                                    a list of Audit
    OUT/results.csv, leaderboard.csv, figures/, report.pdf     derived, rebuilt at will

Reading needs no torch; the functions that handle tensors import it.
"""

import hashlib
import io
import os
import tempfile
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bench.spec import Audit, Data, EvalResult, Manifest, ProbeResult, Record, RunSpec, TrainResult, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

MANIFEST = "manifest.json"
D = TypeVar("D", bound=Data)
AUDITS = TypeAdapter(list[Audit])


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` or leave it as it was: temp file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """As write_bytes, in UTF-8."""
    write_bytes(path, text.encode())


def read(kind: type[D], path: Path) -> D:
    """The record in a JSON file. Raises UsageError if it is missing, damaged or of another kind."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"expected {path}: no such file") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(f"{path} is not a {kind.__name__} of this version: {where}: {first['msg']}") from None


def save(path: Path, record: Data) -> None:
    """A record as JSON, atomically."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """What a run folder was asked for. Raises UsageError if the folder is none."""
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"expected the folder of a run, got {folder}: it has no {MANIFEST}")
    return read(Manifest, folder / MANIFEST)


def load_records(folder: Path) -> list[Record]:
    """All runs of a folder in the manifest's order, those that have not begun included."""
    return [RunFolder(folder, spec).record() for spec in load_manifest(folder).runs]


class RunFolder:
    """The folder of one run: what is finished is found, what is new is put, one file for each cell."""

    def __init__(self, out: Path, spec: RunSpec) -> None:
        self.spec = spec
        self.path = out / "runs" / spec.name

    def record(self) -> Record:
        """Everything known so far. Raises UsageError where a part is damaged or there twice."""
        if not (self.path / "run.json").is_file():
            return Record(spec=self.spec)
        record = read(Record, self.path / "run.json")
        parts = {
            "train": read(TrainResult, self.path / "train.json") if self._has("train.json") else None,
            "probes": [read(ProbeResult, file) for file in sorted(self.path.glob("probes/*.json"))],
            "results": [read(EvalResult, file) for file in sorted(self.path.glob("results/*.json"))],
            "audits": self.audits(),
        }
        try:
            return Record(**dict(record) | parts)
        except ValidationError as error:
            raise UsageError(f"{self.path} is no record: {error.errors()[0]['msg']}") from None

    def save_record(self, record: Record) -> None:
        """Settings, environment and status; the parts have files of their own."""
        alone = record.model_copy(update={"train": None, "probes": [], "results": [], "audits": []})
        save(self.path / "run.json", alone)

    # ------------------------------------------------------------ training

    def trained(self) -> tuple[TrainResult, dict[str, "Tensor"]] | None:
        """The result of a training that has ended, and the encoder's weights."""
        if not self._has("train.json"):
            return None
        result = read(TrainResult, self.path / "train.json")
        return result, load_tensors(self.path / "encoder.safetensors") if result.status == "finished" else {}

    def save_trained(self, result: TrainResult, encoder: dict[str, "Tensor"]) -> None:
        """The encoder first, the result last: a result that is there is complete."""
        save_tensors(self.path / "encoder.safetensors", encoder)
        save(self.path / "train.json", result.model_copy(update={"encoder_sha256": sha256(encoder)}))
        (self.path / "checkpoint.pt").unlink(missing_ok=True)

    def checkpoint(self) -> dict[str, Any] | None:
        """The state of a training that was interrupted."""
        if not self._has("checkpoint.pt"):
            return None
        import torch

        try:
            state: dict[str, Any] = torch.load(self.path / "checkpoint.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(
                f"cannot read {self.path / 'checkpoint.pt'}: {reason}; remove it to train from the start"
            ) from None
        return state

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """The state of a training that goes on later."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.path / "checkpoint.pt", buffer.getvalue())

    # ------------------------------------------------------------ cells

    def probe(self, protocol: str) -> tuple[ProbeResult, dict[str, "Tensor"]] | None:
        """A probe that was fitted."""
        file = self.path / "probes" / f"{protocol}.json"
        if not file.is_file():
            return None
        return read(ProbeResult, file), load_tensors(file.with_suffix(".safetensors"))

    def save_probe(self, probe: ProbeResult, tensors: dict[str, "Tensor"]) -> None:
        file = self.path / "probes" / f"{probe.protocol}.json"
        save_tensors(file.with_suffix(".safetensors"), tensors)
        save(file, probe.model_copy(update={"sha256": sha256(tensors)}))

    def result(self, protocol: str, attack: str, eps: float) -> EvalResult | None:
        """A cell that was measured."""
        file = self._cell(protocol, attack, eps)
        return read(EvalResult, file) if file.is_file() else None

    def save_result(self, result: EvalResult) -> None:
        save(self._cell(result.protocol, result.attack, result.eps), result)

    def adversarial(self, protocol: str, attack: str) -> "Tensor | None":
        """What an attack returned for the first images, (K, C, H, W) in [0, 1], if that was kept."""
        file = self._adversarial(protocol, attack)
        return load_tensors(file)["images"] if file.is_file() else None

    def save_adversarial(self, protocol: str, attack: str, images: "Tensor") -> str:
        """Keep them; returns their hash."""
        save_tensors(self._adversarial(protocol, attack), {"images": images})
        return sha256({"images": images})

    def audits(self) -> list[Audit]:
        """The audits of the protocols, in the order in which they were made."""
        file = self.path / "audit.json"
        try:
            return AUDITS.validate_json(file.read_bytes()) if file.is_file() else []
        except ValidationError as error:
            raise UsageError(f"{file} is no list of audits of this version: {error.errors()[0]['msg']}") from None

    def save_audits(self, audits: list[Audit]) -> None:
        write_bytes(self.path / "audit.json", AUDITS.dump_json(audits, indent=1) + b"\n")

    def _adversarial(self, protocol: str, attack: str) -> Path:
        return self.path / "adversarial" / f"{protocol}-{attack}.safetensors"

    def _cell(self, protocol: str, attack: str, eps: float) -> Path:
        return self.path / "results" / f"{protocol}-{attack}-{eps:.6f}.json"

    def _has(self, name: str) -> bool:
        return (self.path / name).is_file()


def save_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Tensors as safetensors, atomically."""
    from safetensors.torch import save as to_bytes

    write_bytes(path, to_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Tensors of a safetensors file. Raises UsageError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        return from_bytes(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UsageError(f"expected the weights in {path}: {error}") from None


def sha256(tensors: "Mapping[str, Tensor]") -> str:
    """Hash of names, types, shapes and values, in the order of the names; the same on every device."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
