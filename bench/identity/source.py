"""Which code makes a number: the files behind each part of a run, and one hash of all, the same on every machine.

A training, a head, an attack, an audit and a curve each depend on the files that they use, so that a changed attack
costs no training. What is stored carries the hash of its part; run.json has the files behind it.
"""

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bench import registry
from bench.identity.closure import PACKAGES, ROOT, SHOWN, Closure, Files
from bench.identity.outline import outline
from bench.known import of_library
from bench.names import CORRUPTIONS
from bench.spec import RunSpec, UsageError

TRAINING, MODEL, AUDIT, CURVE = "training", "model", "audit", "curve"  # and "head linear", "attack pgd", ...
SHIFT = "feature shift"
Sources = dict[str, Files]  # part of a run -> its files


class Unfit(UsageError):
    """This machine cannot make the run that was asked for, while another may: it has other code or other images."""


# ---------------------------------------------------------------- the parts of a run


def sources(specs: Iterable[RunSpec]) -> dict[str, Sources]:
    """Row -> the files behind each part of its runs, which are the same for all seeds. Raises Unfit.

    A file of the user's own that is not there, or cannot be read, is named.
    """
    closure = Closure()
    first = {spec.row: spec for spec in reversed(list(specs))}
    try:
        return {row: parts(spec, closure) for row, spec in first.items()}
    except OSError as error:
        raise Unfit(f"cannot read {error.filename}: {error.strerror}; copy it to where the run is made") from None


def parts(spec: RunSpec, closure: Closure) -> Sources:
    """The files behind each part of a run that it asks for. Raises OSError."""
    if spec.foreign:
        by_part = {
            MODEL: closure("bench.evaluation.external_model")
            | factory(str(spec.settings["source"]), spec.encoder, closure)
            | encoder(spec, closure)
        }
    else:
        method = plugin("method", spec.method_path or spec.method, closure)
        dataset = plugin("dataset", spec.data.name, closure)  # its settings; the images are compared themselves
        training = closure("bench.training.train", "bench.training.build")
        by_part = {TRAINING: training | method | encoder(spec, closure) | dataset}
    pgd = closure("bench.evaluation.evaluate", "attacks.pgd")  # which the probe band is measured with
    for name in spec.eval.protocols:
        by_part[head_part(name)] = pgd | protocol(spec, name, closure)
    for name in dict.fromkeys(("none", *spec.eval.attacks, "pgd")):
        file = spec.eval.attack_paths.get(name, name)
        by_part[attack_part(name)] = (
            pgd if name == "pgd" else closure("bench.evaluation.evaluate") | plugin("attack", file, closure)
        )
    if spec.eval.corruption_images:
        by_part[attack_part(CORRUPTIONS)] = closure("bench.evaluation.evaluate")
    if spec.eval.audit != "off":
        checks = sorted(
            file.stem for file in (ROOT / "bench" / "audit" / "checks").glob("*.py") if file.stem[0] not in "._"
        )
        by_part[AUDIT] = closure("bench.audit.audit", *(f"bench.audit.checks.{name}" for name in checks))
        for name in spec.eval.protocols:
            by_part[AUDIT] |= protocol(spec, name, closure)
    by_part[SHIFT] = closure("bench.evaluation.embedding")
    if spec.eval.over_time != "off" and not spec.foreign:
        by_part[CURVE] = closure("bench.evaluation.curve", "attacks.pgd") | protocol(spec, "linear", closure)
    return by_part


def head_part(protocol: str) -> str:
    """The part of a run that what a protocol has fitted is; the classifier, and so every result, is made from it."""
    return f"head {protocol}"


def protocol(spec: RunSpec, name: str, closure: Closure) -> Files:
    """The files of a protocol of the run."""
    own = spec.eval.own_protocols.get(name)
    return plugin("protocol", own.plugin(name) if own else name, closure)


def attack_part(name: str) -> str:
    """The part of a run that the results of an attack are."""
    return f"attack {name}"


def plugin(kind: registry.Kind, name: str, closure: Closure) -> Files:
    """The files of a plug-in, as the registry finds it; with the version of the package that brings it."""
    if name.endswith(".py"):
        return closure(Path(name))
    if name in registry.names(kind):
        return closure(f"{registry.PACKAGES[kind]}.{name}")
    for point in importlib.metadata.entry_points(group=f"bench.{kind}s", name=name):
        module = point.value.partition(":")[0].strip()
        version = {f"{point.dist.name} (package)": point.dist.version} if point.dist else {}
        return closure(module, within=module.partition(".")[0]) | version
    return {}


def encoder(spec: RunSpec, closure: Closure) -> Files:
    """The files of a run's encoder, from which all of it is made: the one asked for, or the dataset's.

    All of ours where the source of the dataset does not say which; none where it brings its own (a factory).
    """
    name = spec.encoder_path or spec.encoder
    if name is None and spec.foreign:
        return {}
    if name is None:
        file = registry.source("dataset", spec.data.name)
        declared = outline(file, "Dataset") if file is not None else None
        name = declared.values.get("encoder") if declared is not None else None
    if isinstance(name, str):
        return {} if of_library(name) else plugin("encoder", name, closure)
    return {
        label: content
        for name in registry.names("encoder")
        for label, content in plugin("encoder", name, closure).items()
    }


def factory(source: str, architecture: str | None, closure: Closure) -> Files:
    """The files of a factory ``package.module:name``, found as it is called; none for a file of weights."""
    if architecture is not None:
        return {}
    module = source.partition(":")[0]
    with current_folder():
        return closure(module, within=module.partition(".")[0])


@contextmanager
def current_folder() -> Iterator[None]:
    """The folder where the command was given is the last that is searched, as when a factory is called."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


# ---------------------------------------------------------------- hashes


def code(files: Mapping[str, str]) -> str:
    """One hash of files and their names; "" of none, which stands for code that is not known."""
    return digest((name, content.encode()) for name, content in sorted(files.items()))[:SHOWN] if files else ""


def codes(found: Mapping[str, Files]) -> dict[str, str]:
    """Part -> its hash."""
    return {part: code(files) for part, files in found.items()}


def run_code(found: Mapping[str, Files]) -> str:
    """One hash of all parts of a run."""
    return code(codes(found))


def together(specs: Iterable[RunSpec]) -> str:
    """One hash of the code that makes all these runs. Raises Unfit."""
    return run_code({row: codes(by_part) for row, by_part in sources(specs).items()})


def own(name: str) -> bool:
    """Whether a file is of this project, by its name."""
    return name.startswith(tuple(f"{package}/" for package in PACKAGES))


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files that are not the same, were not there before, or are not any more; the user's first."""
    return sorted(
        (name for name in before.keys() | now.keys() if before.get(name) != now.get(name)),
        key=lambda name: (own(name), name),
    )


def source_hash(spec: RunSpec) -> str:
    """SHA-256 of all that trains and scores the run: all modules of ours, and the user's files. Raises Unfit."""
    return source_hashes([spec])[spec.row]


def source_hashes(specs: Iterable[RunSpec]) -> dict[str, str]:
    """Row -> the same, for all its runs."""
    ours = [("packages", packages().encode())]
    hashes: dict[str, str] = {}
    for row, parts in sources(specs).items():
        users = {name: content.encode() for files in parts.values() for name, content in files.items() if not own(name)}
        hashes[row] = digest(ours + sorted(users.items()))
    return hashes


def difference(node: str, found: str, expected: str) -> str:
    """What to say of the code on a node, by its hash; "" where it is the one that is expected."""
    if found == expected:
        return ""
    return (
        f"expected the code of the command ({expected[:12]}) on every machine, got other ({found[:12]}) on {node}; "
        "install the same version there, copy the files of your own, and give the same command again"
    )


@cache
def packages() -> str:
    """SHA-256 of every module of PACKAGES; what an editor keeps beside them has a dot in front."""
    paths = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    files = sorted(file for file in paths if file.is_file() and not file.name.startswith("."))
    return digest((file.relative_to(ROOT).as_posix(), file.read_bytes()) for file in files)


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of named contents."""
    whole = hashlib.sha256()
    for name, content in parts:
        whole.update(f"{name}\0{len(content)}\0".encode() + content)
    return whole.hexdigest()
