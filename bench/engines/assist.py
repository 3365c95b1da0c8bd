"""What the ranks of a run do that are not its first: they train beside it, then take their share of its attacks.

They write nothing and decide nothing: rank 0 says what to do, and what they find goes to it.
"""

import signal
from typing import Any

import torch

from bench import registry
from bench.data.images import data_info, load_data
from bench.device import device as devices
from bench.distributed.ranks import Ranks
from bench.engines.team import serve
from bench.evaluation.evaluated import Evaluated
from bench.runs.same_inputs import check_copies, check_extra
from bench.spec import RunSpec
from bench.storage.signals import Interrupted, StopFlag
from bench.training.build import build_method
from bench.training.state import Training
from bench.training.train import Keeper, train


def assist(spec: RunSpec, device: torch.device, flag: StopFlag, ranks: Ranks) -> None:
    """Do what rank 0 does in bench.runs.execute, on its word. Raises Interrupted where the training was stopped.

    Raises UsageError where a rank has other code or images.
    """
    dataset = registry.load("dataset", spec.data.name).Dataset()
    train_set, test_set = load_data(dataset, spec.data)
    check_copies(spec, data_info(train_set, test_set), ranks=ranks)
    method, _ = build_method(spec, dataset, train_set.image_shape[0], train_set.classes)
    check_extra(method.extra_data(), ranks)
    with flag.in_training():
        order: dict[str, Any] | None = ranks.tell()
        if order is not None:

            def snapshot(mark: int, training: Training) -> None:
                _ = training.spent  # rank 0 asks for it, and gets the joules of all

            keeper = Keeper(every=order["every"], stop=flag, marks=order["marks"], snapshot=snapshot)
            result = train(
                method,
                train_set,
                spec.budget,
                spec.seed,
                device,
                precision=spec.precision,
                resume=order["resume"],
                lost_seconds=order["lost_seconds"],
                keeper=keeper,
                ranks=ranks,
            )
            if result.status == "preempted":
                raise Interrupted(flag.signum or signal.SIGTERM)
    weights = ranks.tell()
    if weights is not None:  # it was trained, now or before
        encoder = method.kept()
        encoder.load_state_dict(weights)
        placed = devices.place(encoder, device)
        serve(Evaluated[Any](placed, train_set, test_set, spec.eval, spec.seed, device, cells=None), ranks)
