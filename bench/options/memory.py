"""Whether the device has the memory that fine-tuning an encoder takes, asked before anything is trained."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from attacks.common.base import configured
from bench import registry
from bench.encoders.common.build import build_backbone
from bench.spec import EvalSpec, UsageError

COPIES = 8  # of the weights: themselves, gradients, momenta, and what is kept of the trainings so far


def check_memory(spec: EvalSpec, encoder: str, shape: tuple[int, int, int], images: int, device: torch.device) -> None:
    """Raises UsageError for a protocol that trains the encoder on larger batches than the device has memory for.

    shape: (C, H, W) of the images, of which there are so many to train on.
    """
    for name in spec.protocols:
        own = spec.own_protocols.get(name)
        kind = registry.load("protocol", own.plugin(name) if own else name).Protocol
        at_once = configured(kind(), spec.protocol_settings.get(name, {})).passes_kept(images)
        if not at_once:
            continue
        needed = bytes_needed(build_backbone(encoder, shape[0]), shape, at_once)
        free = free_bytes(device)
        if needed > free:
            raise UsageError(
                f"expected about {needed / 2**30:.1f} GiB of memory to fine-tune {encoder} under {name}, got "
                f"{free / 2**30:.1f} GiB free on {device}; ask for smaller batches: --protocols small={name} "
                "--set small.batch=16"
            )


def bytes_needed(backbone: nn.Module, shape: tuple[int, int, int], images: int) -> float:
    """What training a network on so many images at once takes: what their passes keep for the gradients, and copies
    of the weights. Counted in a pass of two images, on the CPU."""
    kept: dict[int, tuple[object, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # held, so that no other takes its place
        kept[storage._cdata] = storage, storage.nbytes()
        return tensor

    weights = sum(weight.untyped_storage().nbytes() for weight in backbone.parameters())
    own = {weight.untyped_storage()._cdata for weight in (*backbone.parameters(), *backbone.buffers())}
    with saved_tensors_hooks(note, lambda tensor: tensor):
        backbone.train()(torch.zeros(2, *shape))
    passes = sum(size for number, (_, size) in kept.items() if number not in own)
    return passes / 2 * images + COPIES * weights


def free_bytes(device: torch.device) -> float:
    """Memory that is free on a device; infinite where nothing says it."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)
