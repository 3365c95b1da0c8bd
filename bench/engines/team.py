"""The attacks of an evaluation dealt to all ranks of a run: whole chunks, or whole batches of an attack that has them.

A chunk's draws are a function of its number, and a batch's of nothing but itself, so what is found is what one device
would have found.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.common.base import Share
from bench.data.images import ImageSet
from bench.distributed.ranks import Ranks
from bench.evaluation.attack_cell import build_attack, build_search
from bench.evaluation.evaluated import Evaluated, restore
from bench.evaluation.search import Cell, Found, Search, alone, listening
from bench.evaluation.traces import AttackError, Before, blame
from bench.protocols.common.base import protocol_of
from bench.protocols.common.classifier import Classifier
from bench.spec import EvalSpec


@dataclass(frozen=True)
class Job:
    """One stage of a cell: what the other ranks need to make the same search. ``standing`` (N,): whom to attack."""

    cell: Cell
    stage: str
    standing: Tensor
    probe: dict[str, Tensor]  # what the protocol stores of its classifier


@dataclass(frozen=True)
class Crew:
    """All ranks as the team of an evaluation, on rank 0; the others ``serve``."""

    ranks: Ranks
    spec: EvalSpec

    def __call__(self, search: Search, cell: Cell, stage: str, test: ImageSet, standing: Tensor) -> Iterator[Found]:
        """What was found of each chunk: the own ones first, then those of the other ranks."""
        probe = protocol_of(self.spec, cell.protocol).stored(search.classifier)
        self.ranks.tell(Job(cell, stage, standing.clone(), probe))
        complaint = ""
        try:
            yield from share(search, test, standing.clone(), self.ranks)
        except AttackError as error:  # the others have to be heard all the same
            complaint = str(error)
        for chunks, warnings, theirs in self.ranks.collect(([], [], ""))[1:]:
            for warning in warnings:
                logging.getLogger("attacks").warning("%s", warning)  # into the notes of this cell
            complaint = complaint or theirs
            yield from chunks
        if complaint:
            raise AttackError(complaint)

    def summon(self, encoder: nn.Module) -> None:
        """The other ranks are to serve with these weights."""
        self.ranks.tell({name: tensor.cpu() for name, tensor in encoder.state_dict().items()})

    def dismiss(self) -> None:
        """No more attacks: the others go."""
        self.ranks.tell()


def serve(it: Evaluated[Any], ranks: Ranks) -> None:
    """Make this rank's share of every attack that rank 0 announces, until it says that there are no more."""
    classifiers: dict[str, Classifier] = {}
    while (job := ranks.tell()) is not None:
        protocol = job.cell.protocol
        if protocol not in classifiers:
            classifiers[protocol] = it.bare_classifier(protocol)
        restore(it.spec, protocol, classifiers[protocol], job.probe, it.device)
        attack = build_attack(job.cell, it.spec).stages(it.test.classes, job.cell.images)[job.stage]
        search = build_search(it, classifiers[protocol], attack, job.cell)
        at_first, chunks, complaint = Before(classifiers[protocol]), [], ""
        with listening(job.cell, lambda event: None) as warnings:
            try:
                chunks = list(share(search, it.test, job.standing, ranks))
                blame(at_first, search.label, partial(search.ask, it.test), attacked=job.cell.attack != "none")
            except AttackError as error:
                at_first.restore()
                complaint = str(error)
        ranks.collect((chunks, warnings, complaint))


def share(search: Search, test: ImageSet, standing: Tensor, ranks: Ranks) -> Iterator[Found]:
    """What this rank finds: in every so many-th chunk, or in its batches of an attack that takes all images at once.

    Then each rank finds the same, and rank 0 says it.
    """
    if hasattr(search.attack, "share"):
        together = replace(search, attack=replace(search.attack, share=Batches(ranks)))  # type: ignore[call-arg]
        try:
            chunks = list(alone(together, test, standing))
        except AttackError as error:
            if error.__cause__ is None:  # found on what all have made together, and so by all
                raise
            raise error.__cause__ from None  # the others wait for this rank's batches: the run ends, and goes on
        yield from chunks if ranks.rank == 0 else ()
    else:
        yield from alone(search, test, standing, ranks.rank, ranks.size)


@dataclass(frozen=True)
class Batches(Share):
    """Every so many-th batch of an attack, and then all of them."""

    ranks: Ranks

    def mine(self, batches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return batches[self.ranks.rank :: self.ranks.size]

    def whole(self, moved: Tensor, images: Tensor) -> Tensor:
        merged = images.clone()
        for part in self.ranks.stack(moved):
            merged = torch.where(part != images, part, merged)
        return merged
