"""What differs between run folders, said before any of their numbers: versions, machines, data, budgets, settings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.record import Environment, Manifest, Record
from bench.spec import format_eps
from reports.codes import different_files


@dataclass(frozen=True, eq=False)
class Folder:
    """A run folder as the store holds it, under the name that tables give it."""

    name: str
    manifest: Manifest
    records: Sequence[Record]

    @property
    def environments(self) -> list[Environment]:
        """Of the runs that have begun, each once; that of the manifest where none has."""
        known = [record.environment for record in self.records if record.environment is not None]
        return [used for place, used in enumerate(known) if used not in known[:place]] or [self.manifest.environment]


@dataclass(frozen=True)
class Difference:
    """One thing by name, and what it is in each of the folders; "" where a folder has no such thing."""

    what: str
    values: tuple[str, ...]


def differences(folders: Sequence[Folder]) -> list[Difference]:
    """Everything that is not the same in all ``folders``: what a run stands on first, then code, then settings."""
    told = [facts(folder) for folder in folders]
    names = dict.fromkeys(name for of_folder in told for name in of_folder)
    compared = [Difference(name, tuple(of_folder.get(name, "") for of_folder in told)) for name in names]
    differing = [difference for difference in compared if len(set(difference.values)) > 1]
    return differing + _code(folders) + _settings(folders)


def facts(folder: Folder) -> dict[str, str]:
    """What the numbers of a folder stand on, by name; several values where its runs differ."""
    manifest, data, environments = folder.manifest, folder.manifest.data, folder.environments
    told = {
        "data set": data.label,
        "training images": f"{data.train}, SHA-256 {data.train_sha256[:12]}",
        "test images": f"{data.test}, SHA-256 {data.test_sha256[:12]}",
        "budget": str(manifest.budget or "each row its own"),
        "main eps": format_eps(manifest.main_eps),
        "hardware": _joined(f"{e.device_name}, {e.cpu}, {e.cores} cores, {e.threads} threads" for e in environments),
        "system": _joined(e.platform for e in environments),
        "precision": _joined(e.precision for e in environments),
        "commit": _joined(f"{(e.commit or 'unknown')[:12]}{' and changes' * bool(e.dirty)}" for e in environments),
    }
    evaluations = [
        spec.eval.model_dump(mode="json") | {"eps": [format_eps(eps) for eps in spec.eval.eps]}
        for spec in manifest.runs
    ]
    fields = dict.fromkeys(
        name for evaluation in evaluations for name in evaluation if name not in ("main_eps", "attack_paths")
    )
    told |= versions(folder)
    return told | {
        f"evaluation: {name}": _joined(_shown(evaluation.get(name, "")) for evaluation in evaluations)
        for name in fields
    }


def versions(folder: Folder) -> dict[str, str]:
    """Of everything that computes, by name."""
    environments = folder.environments
    told = {
        "bench": folder.manifest.bench_version,
        "Python": _joined(e.python for e in environments),
        "torch": _joined(e.torch for e in environments),
    }
    packages = dict.fromkeys(name for e in environments for name in e.versions)
    return told | {name: _joined(e.versions.get(name, "none") for e in environments) for name in packages}


def _code(folders: Sequence[Folder]) -> list[Difference]:
    files = different_files([folder.records for folder in folders])
    return [Difference(f"code: {name}" if name else "code", hashes) for name, hashes in files]


def _settings(folders: Sequence[Folder]) -> list[Difference]:
    """Of methods that at least two folders have."""
    told: list[dict[str, dict[str, str]]] = [
        {r.spec.row: {s.name: _shown(s.value) for s in r.settings} for r in folder.records if r.settings}
        for folder in folders
    ]
    differing = []
    for method in dict.fromkeys(name for methods in told for name in methods):
        having = [methods[method] for methods in told if method in methods]
        for name in dict.fromkeys(name for settings in having for name in settings):
            if len({settings.get(name) for settings in having}) > 1:
                values = (methods[method].get(name, "") if method in methods else "" for methods in told)
                differing.append(Difference(f"{method}.{name}", tuple(values)))
    return differing


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
