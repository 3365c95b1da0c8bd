"""What the device does: the only file that names CUDA, memory formats, meters of memory, passes and FLOPs.

Passes are counted, not estimated: a dispatch mode sees every convolution of one update, forward and backward
(protocol: 1 F = one forward pass of one image; backward to the input and backward to the weights are 1 F each).
"""

import resource
import sys
from collections import deque
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from bench.spec import UsageError

aten = torch.ops.aten
M = TypeVar("M", bound=nn.Module)


def resolve(name: str) -> torch.device:
    """The device called ``auto`` (a GPU if there is one), ``cpu`` or ``cuda:0``. Raises UsageError if it is missing."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"expected a device such as auto, cpu or cuda:0, got {name!r}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UsageError(f"expected a device such as auto, cpu or cuda:0, got {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UsageError(f"the device {name} is not available: this machine has {count} CUDA devices; try --device cpu")
    return torch.device("cuda", device.index or 0)


def prepare(device: torch.device, threads: int | None) -> None:
    """Settings of the whole process: number of CPU threads; float32 means float32 (no TF32)."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.cuda.set_device(device)


def place(module: M, device: torch.device) -> M:
    """The module on the device, convolutions in channels-last (1.3 times as fast as NCHW for ResNet-18 on a CPU)."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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


def reset_peak_memory(device: torch.device) -> None:
    """Start the memory meter anew where that is possible (a CPU process only ever knows its highest peak)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory so far: allocated on the GPU, or resident of this process on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of memory, on the GPU or (a plain RuntimeError there) on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


class Meter(TorchDispatchMode):
    """Counts the FLOPs of what runs inside, and the convolution work by kind.

    The stem is left out of the work by kind: nothing needs its input's gradient in clean training, so with it the
    passes would not be whole numbers. (torch's FlopCounterMode fails on autograd.grad to a leaf, pytorch #131753.)
    """

    def __init__(self, image_channels: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.forward_work = self.input_work = self.weight_work = 0
        self._image_channels = image_channels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        if packet is aten.convolution and args[0].shape[1] != self._image_channels:
            self.forward_work += conv_flop_count(args[0].shape, args[1].shape, out.shape)
        if packet is aten.convolution_backward and args[1].shape[1] != self._image_channels:
            gradient, images, weight, mask = args[0], args[1], args[2], args[10]
            work = conv_flop_count(images.shape, weight.shape, gradient.shape)
            self.input_work += work * mask[0]
            self.weight_work += work * mask[1]
        return out

    def passes(self, encoder: nn.Module, image: Tensor) -> tuple[float, float, float]:
        """Passes of one image through the encoder: (forward, backward to the input, backward to the weights)."""
        mode = encoder.training
        encoder.eval()
        with torch.no_grad(), Meter(self._image_channels) as one:
            encoder(image[None])
        encoder.train(mode)
        unit = max(one.forward_work, 1)
        return self.forward_work / unit, self.input_work / unit, self.weight_work / unit
