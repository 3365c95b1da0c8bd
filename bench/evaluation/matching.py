"""Whose weights are these? The place in a checkpoint whose names and shapes are those of an encoder.

Trainers wrap a state dict (``state_dict``, ``model``) and put something before its names (``module.``, ``_orig_mod.``,
``encoder_q.``). No list of these is needed: a prefix is what is left when a name of the encoder is taken off the end.
"""

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from bench.spec import UsageError

SPELLED = {"shortcut": "downsample"}  # parts of names that others write otherwise
SECOND = {"encoder_k", "key_encoder", "target", "target_encoder", "teacher", "momentum", "ema"}  # copies that follow
COUNTER = "num_batches_tracked"  # files of old versions have none, and nothing depends on it
OF_NORM = ("weight", "bias", "running_mean", "running_var", COUNTER)
LISTED = 6  # names that one line shows


@dataclass(frozen=True)
class Fit:
    """Weights under the encoder's own names, and where they were."""

    container: str
    prefix: str
    weights: dict[str, Tensor]
    renamed: tuple[str, ...]  # "shortcut -> downsample"
    branch: str  # of batch norm; "" where there are none
    left_over: tuple[str, ...]  # names of the container that have no place

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.container or 'the file itself'}{f', under {self.prefix}' * bool(self.prefix)}"


@dataclass
class Candidate:
    """What a prefix of a container has: name of the encoder -> branch -> name in the container."""

    container: str
    prefix: str
    names: dict[str, dict[str, str]]

    @property
    def copied(self) -> bool:
        """Whether these are the weights that follow others, as those of a momentum encoder."""
        return bool(SECOND & set(f"{self.container}.{self.prefix}".split(".")))


def fit(
    containers: dict[str, dict[str, Tensor]], wanted: dict[str, Tensor], prefix: str | None, branch: str | None
) -> Fit:
    """The weights of an encoder with the state ``wanted``, all of them. Raises UsageError where there are none, or two.

    ``prefix`` and ``branch`` are those that the user has named, else None.
    """
    candidates = [
        candidate
        for container, tensors in containers.items()
        for candidate in candidates_of(container, tensors, wanted)
        if prefix is None or candidate.prefix in (prefix, f"{prefix}.")
    ]
    if prefix is not None and not candidates:
        known = sorted({candidate.prefix for c, t in containers.items() for candidate in candidates_of(c, t, wanted)})
        raise UsageError(f"no weight of the encoder is under {prefix!r}; there are some under {listed(known)}")
    whole = [candidate for candidate in candidates if wanted.keys() <= candidate.names.keys() | counters(wanted)]
    whole = [candidate for candidate in whole if not candidate.copied] or whole
    fits = [weights_of(candidate, containers[candidate.container], wanted, branch) for candidate in whole]
    different = [place for n, place in enumerate(fits) if not any(alike(place, other) for other in fits[:n])]
    if len(different) > 1:
        places = "; ".join(fitting.place for fitting in different[:LISTED])
        raise UsageError(
            f"the file has weights for the encoder in {len(different)} places: {places}; say which, --prefix"
        )
    if not different:
        raise UsageError(complaint(candidates, containers, wanted))
    return different[0]


def candidates_of(container: str, tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[Candidate]:
    """A candidate for each prefix under which at least one tensor has name and shape of a weight that is wanted."""
    by_prefix: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in tensors.items():
        parts = name.split(".")
        for at in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:at])
            for target, branch in readings(parts[at:]):
                if target in wanted and wanted[target].shape == tensor.shape:
                    by_prefix[prefix][target].setdefault(branch, name)
    return [Candidate(container, prefix, dict(names)) for prefix, names in by_prefix.items()]


def readings(parts: list[str]) -> list[tuple[str, str]]:
    """(name of the encoder, branch) that a name may stand for: as it is, or one of several batch norms in its place."""
    spelled = [SPELLED.get(part, part) for part in parts]
    plain = [(".".join(spelled), "")]
    if spelled[-1] in OF_NORM:  # bn1.bn_list.0.weight is a bn1.weight
        plain += [(".".join([*spelled[: -1 - k], spelled[-1]]), ".".join(spelled[-1 - k : -1])) for k in (1, 2)]
    return plain


def weights_of(candidate: Candidate, tensors: dict[str, Tensor], wanted: dict[str, Tensor], branch: str | None) -> Fit:
    """The tensors of a candidate that has all. Raises UsageError where the branch of batch norm has to be named."""
    branches = sorted({b for of_name in candidate.names.values() if "" not in of_name for b in of_name})
    if branch is not None and branch not in branches:
        known = ", ".join(branches) or "none"
        raise UsageError(f"expected --branch with one of the file's branches of batch norm ({known}), got {branch!r}")
    if branch is None and len(branches) > 1:
        raise UsageError(
            f"the file has {len(branches)} branches of batch norm: {', '.join(branches)}; each is another encoder, so "
            "say which, --branch"
        )
    chosen = branch if branch is not None else "".join(branches)
    taken = {target: of_name.get("", of_name.get(chosen, "")) for target, of_name in candidate.names.items()}
    lacking = sorted(target for target, name in taken.items() if not name)
    if lacking:
        raise UsageError(f"the branch {chosen} has no {', '.join(lacking[:LISTED])}")
    weights = {target: tensors[name] for target, name in taken.items()}
    weights |= {name: tensor.clone() for name, tensor in wanted.items() if name not in weights}  # counters
    renamed = sorted(
        {f"{old} -> {new}" for old, new in SPELLED.items() if any(f".{old}." in name for name in taken.values())}
    )
    left_over = tuple(name for name in tensors if name not in set(taken.values()))
    return Fit(candidate.container, candidate.prefix, weights, tuple(renamed), chosen, left_over)


def counters(wanted: dict[str, Tensor]) -> set[str]:
    """The names that a file may lack."""
    return {name for name in wanted if name.endswith(COUNTER)}


def alike(one: Fit, other: Fit) -> bool:
    """Whether two places hold the same weights."""
    return all(
        tensor.dtype == other.weights[name].dtype and tensor.equal(other.weights[name])
        for name, tensor in one.weights.items()
    )


def complaint(candidates: list[Candidate], containers: dict[str, dict[str, Tensor]], wanted: dict[str, Tensor]) -> str:
    """How much of the encoder the best place has, and the first names that found no partner on both sides."""
    total = sum(tensor.numel() for tensor in wanted.values())
    best = max(candidates, key=lambda candidate: share(candidate, wanted), default=None)
    if best is None:
        names = [name for tensors in containers.values() for name in tensors]
        has = f"it has {listed(names)}" if names else "it has no tensors"
        return f"no weight of the encoder is in the file: expected {listed(sorted(wanted))}; {has}"
    tensors = containers[best.container]
    missing = sorted(wanted.keys() - best.names.keys() - counters(wanted))
    used = {name for of_name in best.names.values() for name in of_name.values()}
    shapes = [
        f"{target} {tuple(tensors[best.prefix + target].shape)} for {tuple(wanted[target].shape)}"
        for target in missing
        if best.prefix + target in tensors
    ]
    where = Fit(best.container, best.prefix, {}, (), "", ()).place
    said = f"only {share(best, wanted) / total:.1%} of the encoder's weights are in the file ({where}): missing "
    said += f"{listed(missing)}; not used: {listed([name for name in tensors if name not in used]) or 'none'}"
    return said + f"; of another shape: {listed(shapes)}" * bool(shapes)


def share(candidate: Candidate, wanted: dict[str, Tensor]) -> int:
    """Numbers of the encoder that a candidate has."""
    return sum(wanted[name].numel() for name in candidate.names)


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:LISTED]) + f" and {len(names) - LISTED} more" * (len(names) > LISTED)
