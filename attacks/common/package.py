"""Packages that attack: found when they are needed, and kept from leaving traces in the process.

That of AutoAttack's authors, and adv-lib, of which FMN is taken.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
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


# ---------------------------------------------------------------- FMN

NO_FMN = (
    "fmn needs adv-lib: pip install 'robust-ssl-bench[minnorm]', or pip install --no-deps adv-lib tqdm, which is enough"
)


@cache
def load_fmn() -> Any:
    """The function ``fmn`` of adv-lib, from its own file. Raises UsageError if it is not installed.

    The package around it imports visdom, which draws in a browser and which FMN does not use.
    """
    package = importlib.util.find_spec("adv_lib")
    if package is None or not package.submodule_search_locations:
        raise UsageError(NO_FMN)
    file = Path(package.submodule_search_locations[0]) / "attacks" / "fast_minimum_norm.py"
    spec = importlib.util.spec_from_file_location("adv_lib_fast_minimum_norm", file)
    if spec is None or spec.loader is None:
        raise UsageError(NO_FMN)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of distutils, by which it compares versions
        spec.loader.exec_module(module)
    return module.fmn


def fmn_version() -> str:
    """Name and version of the package of FMN, without loading it. Raises UsageError if there is none."""
    try:
        return f"adv-lib {importlib.metadata.version('adv-lib')}"
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(NO_FMN) from None
