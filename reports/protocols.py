"""What tables say of protocols: that of a run's own stands in its settings, that of the others in their source.

No protocol is imported here, since that loads torch, and since a report runs nobody's code.
"""

from collections.abc import Iterable

from bench.identity import outline
from bench.shown import Shown
from bench.spec import RunSpec


def shown(specs: Iterable[RunSpec]) -> dict[str, Shown]:
    """Name -> what is shown of each protocol of these runs, those of the folder first and in its order.

    One that is not known any more is shown by its name, without a rank.
    """
    by_name: dict[str, Shown] = {}
    for spec in specs:
        for name in spec.eval.protocols:
            by_name.setdefault(name, spec.eval.own_protocols.get(name) or outline.shown(name))
    return dict(sorted(by_name.items(), key=lambda item: (bool(item[1].path or item[1].base), item[0])))


def titles(specs: Iterable[RunSpec]) -> dict[str, str]:
    """Name -> title."""
    return {name: protocol.title for name, protocol in shown(specs).items()}


def own_attacks(specs: Iterable[RunSpec]) -> set[str]:
    """The protocols of these runs that have attacks of their own."""
    return {name for name, protocol in shown(specs).items() if protocol.own_attacks}


def ranked(specs: Iterable[RunSpec]) -> list[str]:
    """The protocols of these runs whose numbers are ranked."""
    return [name for name, protocol in shown(specs).items() if protocol.ranked]
