"""The tensors of anybody's checkpoint, a file of torch, read where it can do no harm: bench.evaluation.torch_reader."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.evaluation import torch_reader
from bench.spec import UsageError
from bench.storage.files import load_tensors

SECONDS = 300.0  # for a file of 4 GiB on a slow disk

Containers = dict[str, dict[str, Tensor]]  # "state_dict" -> its names and tensors; "" is the file itself


def read_checkpoint(path: Path) -> Containers:
    """Every dictionary of a file of torch that holds tensors, named by the keys that lead to it, with a dot between.

    Raises UsageError for a file that holds more than weights, is none of torch, takes too much memory or time.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tensors.safetensors"
        told = ask(str(path.resolve()), str(out))
        if "error" in told:
            raise UsageError(f"cannot read the weights of {path}: {told['error']}")
        numbered = load_tensors(out)
    containers: Containers = {}
    for number, (*where, name) in enumerate(told["keys"]):
        containers.setdefault(".".join(where), {})[name] = numbered[str(number)]
    return containers


def ask(file: str, out: str) -> dict[str, Any]:
    """What another process answers (``torch_reader.answer``), or why it does not."""
    command = [sys.executable, "-P", str(torch_reader.__file__), file, out]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        told: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {SECONDS:g} s"}
    except ValueError:  # killed, above all for its memory
        return {"error": f"its process ended with code {done.returncode}"}
    return told
