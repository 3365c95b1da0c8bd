"""The package of AutoAttack's authors: found when it is needed, and kept from leaving traces in the process."""

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bench.spec import UsageError

PACKAGES = ("pyautoattack", "autoattack")  # the same attack code; the second is the authors' own repository


@contextlib.contextmanager
def traceless(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Undo what the package does to the process.

    It seeds the global generators, ends tracing (coverage, debuggers), leaves weight gradients through FAB's
    ``backward`` wherever a parameter wants one, and fails under autocast.
    """
    trace = sys.gettrace()
    trainable = [p for p in model.parameters() if p.requires_grad]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.autocast(device.type, enabled=False):
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            sys.settrace(trace)


def load_package() -> Any:
    """The installed package, on first use: it is not needed to list attacks. Raises UsageError if there is none."""
    for name in PACKAGES:
        with contextlib.suppress(ModuleNotFoundError):
            package = importlib.import_module(name)
            # a count of the process, not of the model: one dynamic model would make all later ones look so
            package.checks.funcs.update(dict.fromkeys(package.checks.funcs, 0))
            return package
    raise UsageError("autoattack needs its package; install it with: pip install pyautoattack")


def package_version() -> str:
    """Name and version of the package that runs, without loading it. Raises UsageError if there is none."""
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    raise UsageError("autoattack needs its package; install it with: pip install pyautoattack")
