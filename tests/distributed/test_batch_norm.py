"""Batch norm over several ranks against torch's own over all images at once."""

import pytest
import torch
from ranks_fixtures import on_ranks
from torch import nn

from bench.distributed.batch_norm import synchronized
from bench.distributed.ranks import Ranks
from bench.spec import UsageError

SHAPES = {"images": (12, 5, 4, 4), "features": (12, 5), "sequences": (12, 5, 3)}
SPLITS = ([7, 5], [1, 11], [6, 6])


def layer(shape, dtype):
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(5, generator=generator))
        norm.bias.copy_(torch.randn(5, generator=generator))
    return norm


def passes(norm, parts, own):
    """Two forward and backward passes of the own part: outputs, gradients, buffers."""
    found = {}
    for n, (x, gradient) in enumerate(parts):
        x = x[own].clone().requires_grad_()
        out = norm(x)
        out.backward(gradient[own])
        found |= {f"out {n}": out.detach(), f"gradient {n}": x.grad}
    return found, {"weight": norm.weight.grad, "bias": norm.bias.grad}, dict(norm.state_dict())


def batches(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(shape, generator=generator).to(dtype) * 3 + 100  # noqa: E731  # far from 0
    return [(draw(), draw() - 100) for _ in range(2)]


def everything(ranks):
    """On one rank: the passes for every shape, split and precision."""
    found = {}
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.float64):
            for split in SPLITS:
                norm, begin = layer(shape, dtype), sum(split[: ranks.rank])
                own = slice(begin, begin + split[ranks.rank])
                with synchronized(norm, ranks):
                    found[name, dtype, tuple(split)] = passes(norm, batches(shape, dtype), own)
                assert type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
    return found


@pytest.fixture(scope="module")
def both():
    return on_ranks(2, everything)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SHAPES)
def test_is_that_of_one_device(both, name, split):
    for dtype, tolerance in ((torch.float32, 3e-5), (torch.float64, 1e-12)):  # of values near 100, in float32
        shape = SHAPES[name]
        norm = layer(shape, dtype)
        whole, weights, state = passes(norm, batches(shape, dtype), slice(None))
        first, second = (each[name, dtype, tuple(split)] for each in both)
        for key, expected in whole.items():
            torch.testing.assert_close(torch.cat([first[0][key], second[0][key]]), expected, rtol=0, atol=tolerance)
        for key, expected in weights.items():  # each rank's is that of its part
            torch.testing.assert_close(first[1][key] + second[1][key], expected, rtol=0, atol=10 * tolerance)
        for key, expected in state.items():
            for rank in (first, second):
                torch.testing.assert_close(rank[2][key], expected, rtol=1e-6, atol=0)


class Own(nn.BatchNorm2d):
    """Some library's kind, which does more than its base."""


def test_an_unknown_kind_is_refused_by_name_and_nothing_is_changed():
    module = nn.Sequential(nn.BatchNorm2d(3), Own(3))
    with pytest.raises(UsageError, match=r"\(BatchNorm1d, BatchNorm2d\), got Own"), synchronized(module, Ranks(0, 2)):
        pass
    assert [type(each) for each in module] == [nn.BatchNorm2d, Own]


def test_alone_nothing_is_changed():
    module = nn.Sequential(nn.BatchNorm2d(3), Own(3))
    with synchronized(module, Ranks()):
        assert [type(each) for each in module] == [nn.BatchNorm2d, Own]
