"""Logits, losses and gradients of many images, in passes that fit into memory."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

log = logging.getLogger("attacks")


class Passes:
    """One pass for all images, or several where memory does not hold them; the size that fitted is kept.

    Images do not depend on each other (batch norm is in eval mode), so the size of a pass changes results by rounding
    only, and no draw.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.model, self.loss = model, loss
        self.most: int | None = None  # images in one pass; None: all

    def __call__(self, images: Tensor, labels: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(logits (B, K), losses (B,), gradient of the images or None), all detached.

        Raises torch.OutOfMemoryError where one image alone does not fit.
        """
        while True:
            try:
                parts = zip(images.split(self.most or len(images)), labels.split(self.most or len(labels)), strict=True)
                logits, losses, slopes = zip(*(self._once(*part, gradients) for part in parts), strict=True)
                return torch.cat(logits), torch.cat(losses), torch.cat(slopes) if gradients else None
            except torch.OutOfMemoryError:
                size = min(self.most or len(images), len(images))
                if size == 1:
                    raise
            self.most = size // 2  # here, where the failed pass has let go of its tensors
            log.warning("out of memory: passes of %d images, not %d; the draws stay the same", self.most, size)

    def _once(self, images: Tensor, labels: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
        images = images.detach().requires_grad_(gradients)
        with torch.set_grad_enabled(gradients):
            logits = self.model(images)
            losses = self.loss(logits, labels)
            slope = torch.autograd.grad(losses.sum(), images)[0] if gradients else losses
        return logits.detach(), losses.detach(), slope
