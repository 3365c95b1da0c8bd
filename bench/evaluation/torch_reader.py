"""Reads a file of torch in a process of its own and writes its tensors as safetensors: torch_reader.py FILE OUT.

``weights_only`` builds tensors, numbers, text and containers, and calls nothing else that a file may name. The memory
of the process is limited, and whoever starts it limits its time. Nothing of this project is imported.
"""

import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save_file

DEEPEST = 5  # containers within each other
SPARE = 2 * 2**30  # bytes besides three times the file: itself, its tensors, their copy
KEPT = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
KEPT |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}


def tensors(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """All plain tensors of a loaded file with the keys that lead to each; not one that is the file, without a name."""
    if isinstance(value, torch.Tensor):
        if where and value.layout == torch.strided and value.dtype in KEPT and not value.is_quantized:
            yield where, value.detach()
    elif isinstance(value, dict) and len(where) < DEEPEST:
        for key, part in value.items():
            if isinstance(key, str):
                yield from tensors(part, (*where, key))


def limit_memory(file: str) -> None:
    """A larger file than it says, a compressed one for example, ends in a MemoryError."""
    with open("/proc/self/status", encoding="ascii") as status:
        now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    most = now + 3 * os.path.getsize(file) + SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def reason(error: BaseException) -> str:
    """In one line; what a file names that is no part of a tensor, if that is it."""
    named = re.search(r"GLOBAL (\S+) was not an allowed global|Unsupported (?:class|global): (\S+)", str(error))
    if named:
        return f"it needs {named[1] or named[2]}, which is code"
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def answer(file: str, out: str) -> dict[str, Any]:
    """Writes OUT, whose tensors are numbered: the ``keys`` that lead to each of them, or the ``error``."""
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        kept = list(tensors(loaded))
        save_file({str(number): tensor.contiguous().clone() for number, (_, tensor) in enumerate(kept)}, out)
    except Exception as error:
        return {"error": reason(error)}
    return {"keys": [where for where, _ in kept]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.platform == "linux":
        limit_memory(sys.argv[1])
    print(json.dumps(answer(*sys.argv[1:])))
