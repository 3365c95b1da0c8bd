"""What an update costs: its passes and FLOPs, the seconds of its phases, the joules of the GPU.

Passes are counted, not estimated: a dispatch mode sees every convolution and product of one update, forward and
backward (protocol: 1 F = one forward pass of one image; backward to the input and to the weights are 1 F each).
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from bench.device.nvml import energy_counter

aten = torch.ops.aten
PRODUCTS = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm)
COPIES = (aten._to_copy, aten.clone)  # of a weight: in another precision, or laid out otherwise


class Phases:
    """Seconds of each phase of an update, without waiting for the device: ``mark`` ends the phase that it names."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._marks: deque[tuple[str | None, Any]] = deque()

    def mark(self, phase: str | None) -> None:
        """The named phase ends here, and the next begins; None: what came before belongs to none."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.perf_counter()))
        self._settle(waiting=False)

    def add(self, phase: str, seconds: float) -> None:
        """Seconds that something else has measured."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """What has been spent in each phase so far; waits for the device."""
        self._settle(waiting=True)
        return dict(self._seconds)

    def _settle(self, waiting: bool) -> None:
        while len(self._marks) > 1:
            (_, began), (phase, ended) = self._marks[0], self._marks[1]
            if self._cuda:
                if waiting:
                    ended.synchronize()
                elif not ended.query():
                    return
            took = began.elapsed_time(ended) / 1e3 if self._cuda else ended - began
            if phase is not None:
                self.add(phase, took)
            self._marks.popleft()


class Energy:
    """Joules that a GPU has taken since this was made; None where nothing measures it (a CPU, no NVML)."""

    def __init__(self, device: torch.device) -> None:
        self._read = energy_counter(device)
        self._start = self._read() if self._read else 0.0

    def joules(self) -> float | None:
        return self._read() - self._start if self._read else None


@dataclass
class Work:
    """FLOPs by kind: forward, backward to the input, backward to the weight."""

    forward: int = 0
    input: int = 0
    weight: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forward + other.forward, self.input + other.input, self.weight + other.weight)


class Meter(TorchDispatchMode):
    """Counts the FLOPs of what runs inside, the convolution work by kind, and that of products with ``weights``.

    Passes are counted in convolutions, of whichever module; in an encoder without an inner one, in the products with
    its own weights (``own_weights``). The stem is left out of both: nothing needs its input's gradient in clean
    training, so with it the passes would not be whole numbers. (torch's FlopCounterMode fails on autograd.grad to a
    leaf, pytorch #131753.)
    """

    def __init__(self, image_channels: int, weights: Iterable[tuple[str, Tensor]] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.convolutions = Work()
        self.products: dict[str, Work] = {}  # by the name of the weight, in the order in which they come first
        self.first = ""  # what comes first: a convolution of the image, or the name of a weight
        self._image_channels = image_channels
        # by storage: views and transposes share it, copies are added to it; a reference that does not keep it alive
        # keeps its number from being that of another
        self._names = {
            StorageWeakRef(weight.untyped_storage()): name
            for name, weight in weights
            if weight.ndim >= 2 and len(weight) > 1  # a matrix, and no bias, position or token
        }
        self._fast = True

    def __enter__(self) -> "Meter":
        # a whole layer in eval mode would be one operation, whose products nothing shows
        self._fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out) if packet in flop_registry else 0
        self.flops += flops
        if packet is aten.convolution:
            self._convolution(conv_flop_count(args[0].shape, args[1].shape, out.shape), args[0])
        elif packet is aten.convolution_backward and args[1].shape[1] != self._image_channels:
            gradient, images, weight, mask = args[0], args[1], args[2], args[10]
            work = conv_flop_count(images.shape, weight.shape, gradient.shape)
            self.convolutions += Work(input=work * mask[0], weight=work * mask[1])
        elif packet in PRODUCTS and self._names:
            self._product(flops, args[-2:])
        elif packet in COPIES and self._names and (name := self._name(args[0])):
            self._names[StorageWeakRef(out.untyped_storage())] = name
        return out

    def _convolution(self, flops: int, images: Tensor) -> None:
        if images.shape[1] != self._image_channels:
            self.convolutions += Work(forward=flops)
        else:
            self.first = self.first or "a convolution of the image"

    def _product(self, flops: int, factors: tuple[Tensor, Tensor]) -> None:
        """A product with a weight is a forward pass, or goes back to the input; that of two others may be the gradient
        of a weight, which the operation that is gone back through tells."""
        name = self._name(factors[0]) or self._name(factors[1])
        node = torch._C._current_autograd_node()  # None outside of a backward pass
        if name and node is None:
            self.first = self.first or name
            self._add(name, Work(forward=flops))
        elif name:
            self._add(name, Work(input=flops))
        elif node is not None and (name := next(filter(None, map(self._name, leaves(node))), "")):
            self._add(name, Work(weight=flops))

    def _add(self, name: str, work: Work) -> None:
        self.products[name] = self.products.get(name, Work()) + work

    def _name(self, tensor: Tensor) -> str:
        strided = tensor.layout is torch.strided  # others have no storage
        return self._names.get(StorageWeakRef(tensor.untyped_storage()), "") if strided else ""

    def passes(self, encoder: nn.Module, image: Tensor) -> tuple[float, float, float]:
        """Passes of one image through the encoder: (forward, backward to the input, backward to the weights)."""
        mode = encoder.training
        encoder.eval()
        with torch.no_grad(), Meter(self._image_channels, encoder.named_parameters()) as one:
            encoder(image[None])
        encoder.train(mode)
        counted, unit = self.convolutions, one.convolutions.forward
        if not unit:
            stem = one.first if len(one.products) > 1 else ""  # of a single product the stem is all there is
            inner = [name for name in one.products if name != stem]
            unit = sum(one.products[name].forward for name in inner)
            counted = sum((self.products.get(name, Work()) for name in inner), Work())
        return counted.forward / max(unit, 1), counted.input / max(unit, 1), counted.weight / max(unit, 1)


def leaves(node: Any) -> Iterator[Tensor]:
    """The parameters that an operation reads as they are, or through views and copies."""
    for before, _ in node.next_functions:
        while before is not None and not hasattr(before, "variable") and len(before.next_functions) == 1:
            before = before.next_functions[0][0]
        if before is not None and hasattr(before, "variable"):
            yield before.variable


def own_weights(encoder: nn.Module, method: nn.Module) -> list[tuple[str, Tensor]]:
    """(name in the encoder, weight) of an encoder and of its copies in a method, such as a teacher, whole or without
    the feature layer: modules of the same type whose weights have the same names and shapes."""
    weights: list[tuple[str, Tensor]] = []
    backbone = getattr(encoder, "backbone", None)
    for prefix, part in (("", encoder), *([("backbone.", backbone)] if isinstance(backbone, nn.Module) else [])):
        for module in method.modules():
            if type(module) is type(part) and shapes(module) == shapes(part):
                weights += [(f"{prefix}{name}", weight) for name, weight in module.named_parameters()]
    return weights


def shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    """Name and shape of every weight."""
    return [(name, weight.shape) for name, weight in module.named_parameters()]
