"""What this machine has, for ``bench doctor``: nothing is downloaded and nothing is written."""

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from bench.cores import cores
from bench.spec import UsageError

EXTRAS = {
    "parquet": "pyarrow",
    "timm": "timm",
    "corruptions": "imagecorruptions-imaug",
    "minnorm": "adv-lib",
    "ray": "ray",
    "slurm": "submitit",
    "tune": "optuna",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",
    "test": "pytest",
}
HERE = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "pyautoattack", "numpy", "scipy", "scikit-learn", "pandas", "matplotlib", "typst")


def examine(data_root: str | None) -> dict[str, dict[str, str]]:
    """Sections of name -> finding, all text. ``shadowed packages`` is empty where all is well."""
    import torch

    gpus = {
        f"cuda:{index}": f"{torch.cuda.get_device_name(index)}, {memory(index)}"
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    }
    return {
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": f"{cores()} of {os.cpu_count()}",
            "torch threads": str(torch.get_num_threads()),
            "CPU kernels": torch.backends.cpu.get_cpu_capability(),
        },
        "devices": gpus or {"cuda": "none; runs use the CPU"},
        "packages": {name: version(name) for name in PACKAGES},
        "extras": {name: version(package) for name, package in EXTRAS.items()},
        "data": data(data_root),
        "shadowed packages": shadowed(),
    }


def memory(index: int) -> str:
    """Memory of a GPU."""
    import torch

    return f"{torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB"


def version(package: str) -> str:
    """Installed version, or that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def data(data_root: str | None) -> dict[str, str]:
    """Which datasets lie where they are looked for."""
    from bench import registry
    from bench.data.images import data_root as root_of
    from bench.spec import DataSpec

    places: dict[str, str] = {}
    for name in registry.names("dataset"):
        dataset: Any = registry.load("dataset", name).Dataset()
        if dataset.needs_path:
            places[name] = "reads the folder that it is given"
            continue
        folders = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
        if name not in folders:
            places[name] = "in the package"
            continue
        place = root_of(dataset, DataSpec(name=name, root=data_root)) / folders[name]
        places[name] = f"found in {place}" if place.is_dir() else f"not in {place}; fetched on first use"
    return places


def shadowed() -> dict[str, str]:
    """Our packages that another one hides: their names are generic, so this can happen."""
    return {name: f"is imported from {place}, not from {HERE}" for name, place in hidden().items()}


def hidden() -> dict[str, str]:
    """Name -> folder or file that Python would import instead of our package of that name."""
    shadows: dict[str, str] = {}
    for name in ("bench", "methods", "attacks", "reports"):
        spec = importlib.util.find_spec(name)
        folders = [*(spec.submodule_search_locations or ())] if spec else []
        if HERE / name not in {Path(folder).resolve() for folder in folders}:
            shadows[name] = (folders or [spec.origin if spec else None])[0] or "nowhere"
    return shadows


def refuse_hidden() -> None:
    """Raises UsageError where a folder of another, as that from which the command is given, hides one of ours."""
    for name, place in hidden().items():
        raise UsageError(
            f"{place} hides {HERE / name}, which has the same name; rename it, or give the command in another folder"
        )
