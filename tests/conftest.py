"""Shared by all tests: one thread, two small datasets, a small method, and the options for what takes long."""

import gc
import os
from pathlib import Path

import pytest
import torch
from tiny_fixtures import build_tiny

from bench import registry
from bench.device import device as devices
from bench.engines.child import PRELOAD

SHORT = Path(__file__).parent / "short"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--ci", action="store_true", help="also run the tests that take many seconds in whole processes")
    parser.addoption("--chaos", action="store_true", help="also run the tests of faults in full numbers")
    parser.addoption("--cluster", action="store_true", help="also run the tests that start a Ray cluster or jobs")
    parser.addoption("--gpu", action="store_true", help="also run the tests that need a CUDA device")


def pytest_configure():
    """What is imported stays until the end: looking for garbage among it takes a tenth of the collection.

    The processes of runs attack in few steps (tests/short/small.py), and so do those of commands.
    """
    gc.disable()
    PRELOAD.append("small")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SHORT), os.environ.get("PYTHONPATH")]))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()


def pytest_collection_modifyitems(config, items):
    for name in ("slow", "gpu", "chaos", "cluster", "ci"):
        if not config.getoption(f"--{name}"):
            for item in items:
                if item.get_closest_marker(name):
                    item.add_marker(pytest.mark.skip(reason=f"runs with --{name}"))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are bitwise equal only for the same number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quick_peak():
    """What the matrix units reach takes a second to measure, after every training; a test that needs it gets it."""
    real = devices.matrix_peak
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "matrix_peak", lambda device, precision: 1e9)
        yield real


@pytest.fixture(autouse=True)
def own_storage(tmp_path_factory, monkeypatch):
    """What a test decodes stays out of the user's cache."""
    if "BENCH_DATA_ROOT" not in os.environ:
        monkeypatch.setenv("BENCH_DATA_ROOT", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.fixture(scope="session")
def digits():
    """The training images of digits: 1500 of 1x16x16."""
    return registry.load("dataset", "digits").Dataset().load(Path(), "train")


@pytest.fixture(scope="session")
def synthetic():
    """The training images of synthetic: 256 of 3x16x16."""
    return registry.load("dataset", "synthetic").Dataset().load(Path(), "train")


@pytest.fixture(scope="session")
def tiny():
    """``tiny("emp_ssl", seed=0, channels=1, **settings)``."""
    return build_tiny
