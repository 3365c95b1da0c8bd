"""How far an encoder's features can be moved within the ball, without labels and before any head.

PGD climbs the length of the shift, ||f(x + delta) - f(x)||_2, of the layer that the ranked probes read. A shift has no
unit of its own, so it is told in mean distances between the clean features of different images: at 1 an image can be
moved as far as another image is. One number for each encoder, whatever is fitted on it.
"""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from attacks.common.threat import project, random_start, steepest
from bench.device import device as devices
from bench.encoders.common.folding import fold_batch_norm
from bench.evaluation.evaluated import Evaluated
from bench.evaluation.search import one_line
from bench.random import stream
from bench.record import EncoderShift
from bench.storage.store import RunFolder

IMAGES = {"quick": 64}  # the first test images; 1,000 at the other levels
MOST = 1000
STEPS, STEP = 20, 1 / 4  # of eps, as in the ranked PGD, with one random start


def encoder_shift(it: Evaluated[RunFolder]) -> str:
    """Measure the encoder at the main eps of l-inf and store it, once. Returns why there is no number, or ""."""
    if it.cells.shift() is not None:
        return ""
    record = it.cells.record()
    spent = sum(probe.seconds for probe in record.probes) + sum(result.seconds for result in record.results)
    if it.spec.budget_seconds is not None and spent >= it.spec.budget_seconds:
        return "no time was left for the shift of the features"
    it.report({"event": "attack", "protocol": "encoder", "attack": "features", "eps": it.spec.main_eps,
               "message": "the largest shift"})  # fmt: skip
    images = min(IMAGES.get(it.spec.level, MOST), len(it.test))
    began = time.monotonic()
    parts = []
    encoder = fold_batch_norm(it.encoder)
    try:
        for number, ids in enumerate(torch.arange(images).split(it.spec.chunk)):
            clean = it.test.pictures(ids, it.device)
            draws = stream(it.seed, "feature shift", number)
            parts.append([part.cpu() for part in furthest(encoder, clean, it.spec.main_eps, draws)])
    except Exception as error:
        if devices.is_out_of_memory(error):
            raise
        return f"no shift of the features: {one_line(error)}"
    before, after = (torch.cat(part) for part in zip(*parts, strict=True))
    config = {"steps": STEPS, "relative_step": STEP, "chunk": it.spec.chunk, "seed": it.seed}
    shift = summary(before, after) | {"eps": it.spec.main_eps, "images": images, "config": config}
    it.cells.save_shift(EncoderShift(seconds=time.monotonic() - began, **shift))
    return ""


def furthest(encoder: nn.Module, clean: Tensor, eps: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Features (B, F) of clean images (B, C, H, W) in [0, 1], and those furthest from them that PGD met in the ball.

    The encoder is frozen: (B, C, H, W) -> (B, F). At eps 0 both are the same.
    """
    with torch.no_grad():
        before = encoder(clean)
    if eps == 0:
        return before, before
    best, longest = before, before.new_zeros(len(before))
    images = random_start(clean, eps, generator)  # the shift has no gradient at the clean image itself
    for remaining in reversed(range(STEPS + 1)):
        images = images.detach().requires_grad_(remaining > 0)
        with torch.set_grad_enabled(remaining > 0):
            features = encoder(images)
            squares = (features - before).square().sum(dim=1)
        better = ~(squares.detach() <= longest)  # what is not finite is no small shift: ``summary`` hears of it
        best = torch.where(better[:, None], features.detach(), best)
        longest = torch.where(better, squares.detach(), longest)
        if remaining:
            slope = torch.autograd.grad(squares.sum(), images)[0]
            images = project(images.detach() + STEP * eps * steepest(slope).nan_to_num(), clean, eps)
    return before, best


def summary(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Fields of an EncoderShift, of clean features (n, F) and moved ones. Gaps where they are not finite or all equal.

    Both are centred on the mean clean feature, as the probe does, so that what all images share tells nothing.
    """
    if not (before.isfinite().all() and after.isfinite().all()):
        return {"note": "features are NaN or infinite"}
    before, after = before.double(), after.double()
    spread = float(torch.pdist(before).mean()) if len(before) > 1 else 0.0
    if spread == 0:
        return {"note": "the features of all images are equal"}
    shifts = (after - before).norm(dim=1) / spread
    centre = before.mean(dim=0)
    cosines = F.cosine_similarity(before - centre, after - centre, dim=1)
    return {
        "spread": spread,
        "mean": float(shifts.mean()),
        "median": float(shifts.quantile(0.5)),
        "cosine_mean": float(cosines.mean()),
        "cosine_median": float(cosines.quantile(0.5)),
    }
