"""The code behind the numbers: its hashes, runs of two codes under two names, and the files in which folders differ."""

from collections.abc import Iterable, Mapping, Sequence

from bench.identity.source import MODEL, TRAINING, attack_part, changed, code, head_part, own
from bench.record import EvalResult, Record
from bench.spec import RunSpec

SHORT = 8  # digits of a hash in a table
LISTED = 8  # files that differ, a line each


def of_run(record: Record) -> dict[str, str]:
    """Part of a run -> the hash of the code that made what there is of it; "" where that is not known.

    What else makes runs different is a part too: the extra data that one has learnt from.
    """
    made = {TRAINING: record.train.code} if record.train is not None else {}
    if record.spec.foreign and (record.probes or record.results):
        made[MODEL] = code(record.sources.get(MODEL, {}))
    made |= {"extra data": record.extra_data} if record.extra_data else {}
    several: dict[str, set[str]] = {}
    for probe in record.probes:
        several.setdefault(head_part(probe.protocol), set()).add(probe.code)
    for result in record.results:
        several.setdefault(attack_part(result.attack), set()).add(result.code)
    return made | {part: "+".join(sorted(hashes)) for part, hashes in several.items()}


def cell(record: Record, result: EvalResult | None = None) -> str | None:
    """``training.head.attack`` of a number, the beginning of each hash; None where no code is known."""
    made = of_run(record)
    codes = [made.get(TRAINING, "") or made.get(MODEL, "")]
    if result is not None:
        heads = [probe.code for probe in record.probes if probe.protocol == result.protocol]
        codes += ["".join(heads[:1]), result.code]
    shown = ["+".join(digest[:SHORT] for digest in code.split("+")) for code in codes]
    return ".".join(text or "-" for text in shown) if any(text.strip("+") for text in shown) else None


def conflict(one: Record, other: Record) -> bool:
    """Whether a part that both have was made by two codes, or they have learnt from different extra data."""
    mine, theirs = of_run(one), of_run(other)
    return any(mine[part] != theirs[part] for part in mine.keys() & theirs.keys())


def apart(records: Sequence[Record]) -> list[Record]:
    """The same, in their order; runs of one row that two codes made are named by these, as ``mine@3f2a91c0``.

    So are runs that have learnt from different extra data.
    They are no seeds of one method, and so share no mean, no rank and no claim.
    """
    groups: dict[str, list[list[Record]]] = {}
    for record in records:
        of_row = groups.setdefault(record.spec.row, [])
        fitting = [group for group in of_row if not any(conflict(record, other) for other in group)]
        if fitting:
            fitting[0].append(record)
        else:
            of_row.append([record])
    names: dict[str, str] = {}
    for row, of_row in groups.items():
        if len(of_row) > 1:
            names |= {run.spec.name: label for label, group in _labelled(row, of_row) for run in group}
    return [_named(record, names.get(record.spec.name)) for record in records]


def _labelled(row: str, groups: Sequence[list[Record]]) -> list[tuple[str, list[Record]]]:
    whole = [{part: made for record in group for part, made in of_run(record).items()} for group in groups]
    trained = [codes.get(TRAINING, "") or codes.get(MODEL, "") for codes in whole]
    if len(set(trained)) < len(groups):  # the same training, evaluated by two codes
        trained = [code(codes) if any(codes.values()) else "" for codes in whole]
    return [(f"{row}@{digest[:SHORT] or 'unknown'}", group) for digest, group in zip(trained, groups, strict=True)]


def _named(record: Record, label: str | None) -> Record:
    return record if label is None else record.model_copy(update={"spec": relabelled(record.spec, label)})


def relabelled(spec: RunSpec, label: str) -> RunSpec:
    """Not checked, since ``@`` is in no name of a file: this one is only shown."""
    return spec if label == spec.row else spec.model_copy(update={"label": label})


# ---------------------------------------------------------------- files


def settings(record: Record) -> list[list[str]]:
    """Lines of the settings: part, hash, and the files that are not of this project."""
    lines = []
    for part, files in record.sources.items():
        others = ", ".join(name for name in files if not own(name))
        lines.append([f"code of the {part}", code(files), others or "this project"])
    return lines


def different_files(folders: Sequence[Sequence[Record]]) -> list[tuple[str, tuple[str, ...]]]:
    """(file, its hash in each of the folders, "" where it is not used) of each in which the code of a part differs.

    The training of a method is compared where two folders have it; heads, attacks and audits of all.
    """
    told = [_parts(records) for records in folders]
    if not all(told) and any(told):
        return [("", tuple("recorded" if parts else "not recorded" for parts in told))]
    names: list[str] = []
    for part in dict.fromkeys(part for parts in told for part in parts):
        having = [files for parts in told for files in parts.get(part, ())]
        names += [name for other in having[1:] for name in changed(having[0], other)]

    def hashes(parts: Mapping[str, Sequence[Mapping[str, str]]], name: str) -> str:
        used = [files[name][:SHORT] for of_part in parts.values() for files in of_part if name in files]
        return "; ".join(dict.fromkeys(used))

    differing = [(name, tuple(hashes(parts, name) for parts in told)) for name in dict.fromkeys(names)]
    differing = [pair for pair in differing if len(set(pair[1])) > 1]
    differing.sort(key=lambda pair: (own(pair[0]), pair[0]))
    more = len(differing) - LISTED
    rest = [(f"{more} more files", ("other",) * len(folders))] if more > 0 else []
    return differing[:LISTED] + rest


def _parts(records: Iterable[Record]) -> dict[str, list[Mapping[str, str]]]:
    """Part, with its row where it is the row's own -> its files, as each code that made it has them."""
    parts: dict[str, list[Mapping[str, str]]] = {}
    for record in records:
        for part, files in record.sources.items():
            known = parts.setdefault(f"{part} {record.spec.row}" if part in (TRAINING, MODEL) else part, [])
            known += [files] if files not in known else []
    return parts
