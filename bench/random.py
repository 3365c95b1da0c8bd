"""One random stream per purpose, and the stamp that says what made a number.

Nothing here reads or moves the global generators.
"""

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from bench.commit import checkout
from bench.cores import cores
from bench.record import Environment

PACKAGES = (  # they make the numbers; the last that of corrupted images
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pyautoattack"),
    *("imagecorruptions-imaug", "opencv-python", "scikit-image"),
)
GAMMA = 0x9E3779B97F4A7C15 - 2**64  # the constants of splitmix64, as signed integers
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


# ---------------------------------------------------------------- random streams


def stream(seed: int, *keys: int | str) -> torch.Generator:
    """CPU generator whose state is a function of seed and keys alone, e.g. ``stream(0, "attack", chunk, restart)``.

    >>> torch.rand(1, generator=stream(0, "init")).equal(torch.rand(1, generator=stream(0, "init")))
    True
    """
    return torch.Generator().manual_seed(digest(seed, *keys))


def digest(*keys: int | str) -> int:
    """Hash of the keys in [0, 2**63), the same on every machine; 1 and "1" differ. Raises TypeError for other types."""
    return int.from_bytes(hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).digest()) >> 1


class Draws:
    """Random numbers for V views of B images, each a function of (seed, epoch, image id, view, place in the row).

    So the order of images, the batch size and resuming change none of them, and asking for 2 and then 3 numbers gives
    the same ones as asking for 5. Each row is a splitmix64 sequence (Steele, Lea & Flood, 2014,
    doi:10.1145/2660193.2660195) that starts at a hash of its keys.
    """

    def __init__(
        self, seed: int, epoch: int, image_ids: Tensor, views: int, device: torch.device | str = "cpu"
    ) -> None:
        images = image_ids.to(device, torch.int64, non_blocking=True)
        root = torch.full((), digest(seed, "draws", epoch), device=device)
        self._start = child(child(root, torch.arange(views, device=device))[:, None], images)
        self._used = 0  # numbers taken from each row so far

    def uniform(self, n: int) -> Tensor:
        """The next n numbers of every row: (V, B, n) float32 in [0, 1), multiples of 2**-24."""
        places = torch.arange(self._used, self._used + n, device=self._start.device)
        self._used += n
        return shift(child(self._start[..., None], places), 40).float() * 2.0**-24


def child(state: Tensor, index: Tensor) -> Tensor:
    """Number ``index`` (int64) of the splitmix64 sequence that starts at ``state``, as 64 bits in an int64."""
    z = state + (index + 1) * GAMMA  # int64 arithmetic wraps around, as wanted
    z = (z ^ shift(z, 30)) * MULTIPLIERS[0]
    z = (z ^ shift(z, 27)) * MULTIPLIERS[1]
    return z ^ shift(z, 31)


def shift(z: Tensor, bits: int) -> Tensor:
    """z >> bits that fills with zeros; torch's own shift of an int64 copies the sign."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted


# ---------------------------------------------------------------- the stamp


def environment(device: str, precision: str, ranks: int = 1) -> Environment:
    """Software and machine of this process, and how many ``ranks`` like it make a run, each on such a device.

    What cannot be found out is left out or None, never an error.
    """
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    name = torch.cuda.get_device_name(device) if on_gpu else cpu_name()
    commit, dirty = checkout(Path(__file__).parent)
    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        versions=versions(),
        platform=platform.platform(),
        cpu=cpu_name(),
        cores=cores(),
        threads=torch.get_num_threads(),
        device=device,
        device_name=f"{ranks} x {name}" if ranks > 1 else name,
        precision=precision,
        commit=commit,
        dirty=dirty,
        node=platform.node(),
    )


def versions() -> dict[str, str]:
    """Installed versions of PACKAGES; a missing package is left out."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def cpu_name() -> str:
    """Model name of the processor, or at least its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name") and ":" in line)
    return next(names, platform.processor() or platform.machine())
