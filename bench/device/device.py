"""What the device does: the only file that chooses CUDA, precision and memory formats. Its meters are in meters.py."""

import contextlib
import math
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.cores import cores
from bench.device.meters import Energy as Energy
from bench.device.meters import Meter as Meter
from bench.device.meters import Phases as Phases
from bench.device.meters import own_weights as own_weights
from bench.known import check_device_name
from bench.spec import Precision, UsageError

M = TypeVar("M", bound=nn.Module)
IMAGES_SHARE = 0.25  # of a GPU's memory; larger sets are streamed to it


def resolve(name: str) -> torch.device:
    """The device called ``auto`` (a GPU if there is one), ``cpu`` or ``cuda:0``. Raises UsageError if it is missing."""
    check_device_name(name)
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UsageError(f"the device {name} is not available: this machine has {count} CUDA devices; try --device cpu")
    return torch.device("cuda", device.index or 0)


def elsewhere(name: str) -> torch.device:
    """The device of that name on another machine: ``cuda`` or ``cpu``; ``auto`` is what this one has. UsageError."""
    if name == "auto":
        return resolve(name)
    if name not in ("cpu", "cuda"):
        raise UsageError(f"expected --device cpu or cuda for runs on other machines, got {name!r}")
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES is to be so that a process sees one GPU of those that this one sees; () without any."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(given[:count] if len(given) >= count else map(str, range(count)))


def of_rank(first: torch.device, place: int) -> torch.device:
    """The device of a rank on this machine: those after the first one, or the CPU for all."""
    return torch.device("cuda", (first.index or 0) + place) if first.type == "cuda" else first


def check_ranks(first: torch.device, ranks: int, compiled: bool) -> None:
    """Raises UsageError where a run cannot have so many ranks, each on a device of its own."""
    if ranks > 1 and compiled:
        raise UsageError("expected one GPU per run with --compile: batch norm over several is not compiled")
    here = torch.cuda.device_count() - (first.index or 0) if first.type == "cuda" else ranks
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))  # torchrun's, where several machines make the run
    if wanted > here:
        raise UsageError(
            f"expected at most {here} GPUs per run, those from {first} on, got {wanted}; "
            "with more machines, start the command on each with torchrun"
        )


def prepare(device: torch.device, threads: int | None) -> None:
    """Settings of the whole process: number of CPU threads; float32 means float32 (no TF32).

    Without a number torch's own holds, but for cores that this process may not use.
    """
    torch.set_num_threads(threads or min(torch.get_num_threads(), cores()))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.cuda.set_device(device)


def place(module: M, device: torch.device) -> M:
    """The module on the device, convolutions in channels-last (1.3 times as fast as NCHW for ResNet-18 on a CPU)."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def default_precision(device: torch.device) -> Precision:
    """bf16 where matrix units make it worth its rounding."""
    return "bf16" if device.type == "cuda" else "fp32"


@contextlib.contextmanager
def mixed(method: nn.Module, precision: Precision) -> Iterator[None]:
    """Inside, ``bf16`` runs the forward passes of the method's modules (encoder, heads) in bf16 where autocast allows.

    They hand on float32, and what lies between them, the losses above all, is float32; so are weights and gradients.
    The cast weights are not cached: a cache outlives the optimizer's step, and one filled without gradients (a clean
    embedding, a frozen attack) would cut the weights off the next loss.
    """
    entered: list[torch.autocast] = []

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiled module is entered as any other
    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        entered.append(torch.autocast(inputs[0].device.type, torch.bfloat16, cache_enabled=False))
        entered[-1].__enter__()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        entered.pop().__exit__(None, None, None)
        return output.float() if isinstance(output, Tensor) and output.dtype == torch.bfloat16 else output

    children = list(method.children()) if precision == "bf16" else []
    hooks = [child.register_forward_pre_hook(enter) for child in children]
    hooks += [child.register_forward_hook(leave, always_call=True) for child in children]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def tf32(device: torch.device, enabled: bool) -> Iterator[None]:
    """TF32 in the float32 convolutions of a GPU; not in products, which cut the crops: pixels would be rounded."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = enabled and device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def compile_modules(*modules: nn.Module) -> None:
    """Compile the modules in place; their parameters, buffers and state stay the same objects."""
    for module in modules:
        module.compile(dynamic=False)


def collectives(device: torch.device) -> str:
    """Backends of torch.distributed for tensors there, and on the CPU."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Pacer:
    """Keeps the host at most ``lag`` updates ahead of the device (protocol: T-stop). Nothing to do on a CPU."""

    def __init__(self, device: torch.device, lag: int = 2) -> None:
        self._cuda, self._lag = device.type == "cuda", lag
        self._events: deque[torch.cuda.Event] = deque()

    def launched(self) -> None:
        """One more update has been launched; wait for the one ``lag`` before it."""
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)
            if len(self._events) > self._lag:
                self._events.popleft().synchronize()


def generator_state(device: torch.device) -> Tensor | None:
    """State of the global generator of a GPU; None on a CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def load_generator_state(device: torch.device, state: Tensor | None) -> None:
    """Put it back, where there was one."""
    if device.type == "cuda" and state is not None:
        torch.cuda.set_rng_state(state, device)


def reset_peak_memory(device: torch.device) -> None:
    """Start the memory meter anew where that is possible (a CPU process only ever knows its highest peak)."""
    if device.type == "cuda":
        torch.cuda.init()  # the meter itself refuses a device that nothing has used yet
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory so far: allocated on the GPU, or resident of this process on the CPU.

    On Linux from the kernel's high-water mark: what getrusage tells includes the process that has started this one.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    marks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.is_file() else []
    if marks:
        return int(marks[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def room_for_images(device: torch.device) -> float:
    """Bytes of images that may lie on the device beside a training: a share of a GPU's memory, no limit on a CPU."""
    return IMAGES_SHARE * torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else math.inf


def release_memory(device: torch.device) -> None:
    """Give back what the allocator keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on the GPU or (a plain RuntimeError there) on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@torch.no_grad()
def matrix_peak(device: torch.device, precision: Precision) -> float:
    """FLOP per second of the largest square matrix product that is quick to time: the best of five on this device."""
    size, dtype = (8192 if device.type == "cuda" else 1024), torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.rand(size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)  # ones take less power
    best = float("inf")
    for _ in range(6):  # the first one warms up, and may be the slowest
        synchronize(device)
        began = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
