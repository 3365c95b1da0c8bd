"""Shared by all tests: one thread, two small datasets, a small method, and the options for what takes long."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from bench import registry
from bench.encoder import build_encoder

SMALL = {"batch": 6, "feature_width": 16, "hidden_width": 16, "embedding_width": 8, "eps": 0.1, "step": 0.032}


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--chaos", action="store_true", help="also run the tests of faults in full numbers")
    parser.addoption("--cluster", action="store_true", help="also run the tests that start a Ray cluster or jobs")
    parser.addoption("--gpu", action="store_true", help="also run the tests that need a CUDA device")


def pytest_collection_modifyitems(config, items):
    for name in ("slow", "gpu", "chaos", "cluster"):
        if not config.getoption(f"--{name}"):
            for item in items:
                if item.get_closest_marker(name):
                    item.add_marker(pytest.mark.skip(reason=f"runs with --{name}"))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are bitwise equal only for the same number of threads."""
    torch.set_num_threads(1)


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


def build_tiny(name, *, seed=0, channels=1, **settings):
    """The method on a narrow ResNet-8, with 3 views at most."""
    module = registry.load("method", name)
    default = module.Config()
    config = dataclasses.replace(default, **SMALL | {"views": min(default.views, 3)} | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module.Method(config).attach(build_encoder("resnet8", channels, config.feature_width))


@pytest.fixture(scope="session")
def tiny():
    """``tiny("emp_ssl", seed=0, channels=1, **settings)``."""
    return build_tiny
