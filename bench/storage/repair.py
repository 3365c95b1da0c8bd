"""What is damaged in the folder of a run is put aside, with all that was made from it, to be made again."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.record import EvalResult, Record
from bench.storage.disk import is_there, listed, remove_file, sync_folders
from bench.storage.files import Damaged, read
from bench.storage.store import CELLS, RunFolder, cell, images_file


def repair(run: RunFolder) -> list[Damaged]:
    """What was put aside, as ``<name>.damaged``; then the folder is as an undisturbed run would have left it.

    Raises DiskError.
    """
    settle(run.path.parent, run.path, *(run.path / kind for kind in (*CELLS, "snapshots")))
    damaged = []
    for load, files in parts(run):
        try:
            load()
        except Damaged as error:
            damaged.append(error)
            run.put_aside(*reversed(files))  # the damaged one last: a kill on the way leaves it to be found again
    trained = run.trained()
    if trained is not None:
        run.forget_training(trained[0])
    for protocol, attack in measured(run):
        run.forget_images(protocol, attack)
    return damaged


def settle(*folders: Path) -> None:
    """What a killed process has made there outlasts a power cut, and what it was writing is removed. Raises DiskError.

    Without it, a later file could be on disk and one that it builds on, which was renamed but not synced, be lost.
    """
    for folder in folders:
        for name in listed(folder):
            if name.startswith(".") and name.endswith(".tmp"):
                remove_file(folder / name)
        sync_folders(folder.parent, folder)


def parts(run: RunFolder) -> Iterator[tuple[Callable[[], object], list[str]]]:
    """(how to load it; the files that go with it when it is damaged), the first of them its own, for each part.

    Lazily: what was put aside for an earlier part is not asked for. The results of an attack go together, since each
    of them starts from the images of the one before.
    """
    if is_there(run.path / "run.json"):
        yield partial(read, Record, run.path / "run.json"), ["run.json"]
    yield run.audits, ["audit.json"]
    yield run.curve, ["curve.json"]
    yield run.shift, ["shift.json"]
    everything = ["curve.json", "shift.json", *(name for kind in (*CELLS, "snapshots") for name in run.names(kind))]
    yield run.trained, ["train.json", "encoder.safetensors", "audit.json", *everything]
    for mark in [int(name[10:-5]) for name in run.names("snapshots") if name.endswith(".json")]:
        yield partial(run.snapshot, mark), [f"snapshots/{mark}.json", f"snapshots/{mark}.safetensors"]
    for protocol in [name[7:-5] for name in run.names("probes") if name.endswith(".json")]:
        own = [f"probes/{protocol}.json", f"probes/{protocol}.safetensors"]
        made = [name for name in made_by_attacks(run) if cell(name).partition("-")[0] == protocol]
        yield partial(run.probe, protocol), [*own, "audit.json", *made]
    for pair in measured(run):
        made = [name for name in made_by_attacks(run) if cell(name) == "-".join(pair)]
        for name in (name for name in made if name.endswith(".json") and is_there(run.path / name)):
            yield partial(read, EvalResult, run.path / name), [name, "audit.json", *made]
        last = run.last_with_images(*pair)
        if last is not None:
            yield partial(run.adversarial, *pair), [images_file(last), "audit.json", *made]


def made_by_attacks(run: RunFolder) -> list[str]:
    """All results, then all images."""
    return [*run.names("results"), *run.names("adversarial")]


def measured(run: RunFolder) -> list[tuple[str, str]]:
    """(protocol, attack) of all results."""
    cells = {cell(name).partition("-") for name in run.names("results")}
    return sorted((protocol, attack) for protocol, _, attack in cells)
