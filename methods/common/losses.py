"""Losses of the objectives: plain functions of embeddings, each a scalar to minimize.

Embeddings z are (V, B, D): V views of the same B images, unit vectors. Half precision is widened to float32, also
inside a mixed-precision region: at temperature 0.07 the rounding of bf16 alone moves a logit by 0.03.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent: mean over the 2B anchors of -log softmax, over the other 2B - 1 embeddings, at the anchor's partner.

    z: (2, B, D) unit vectors -> scalar >= 0. SimCLR (Chen et al., 2020, arXiv:2002.05709), eq. 1.
    """
    batch, z = z.shape[1], z.flatten(0, 1)
    similarity = inner_products(z) / temperature
    itself = torch.eye(2 * batch, dtype=torch.bool, device=z.device)
    partner = torch.arange(2 * batch, device=z.device).roll(batch)
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)


def nt_xent_of_views(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent in which every other view of an image is a positive: the mean over anchors and over their positives.

    z: (V, B, D) unit vectors, V >= 2 -> scalar >= 0; for V = 2 that of ``nt_xent``. Khosla et al., 2020,
    arXiv:2004.11362, eq. 2, where the views of an image are a class.
    """
    views, batch, z = z.shape[0], z.shape[1], z.flatten(0, 1)
    itself = torch.eye(views * batch, dtype=torch.bool, device=z.device)
    similarity = (inner_products(z) / temperature).masked_fill(itself, -torch.inf)
    image = torch.arange(batch, device=z.device).repeat(views)
    positive = (image[:, None] == image) & ~itself
    return -similarity.log_softmax(dim=1)[positive].mean()  # each anchor has as many positives


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine of unit vectors, row by row: (B, D), (B, D) -> scalar in [-1, 1]."""
    return (a * b).sum(dim=1).mean()


def variance(z: Tensor, eps: float = 1e-4) -> Tensor:
    """Mean over dimensions of how far the standard deviation over the batch is below 1.

    z: (B, D), not normalized -> scalar in [0, 1]. VICReg (Bardes et al., 2022, arXiv:2105.04906), eq. 1.
    """
    return torch.relu(1 - (widen(z).var(dim=0) + eps).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Squared covariances of different dimensions over the batch, summed, divided by the width.

    z: (B, D), not normalized -> scalar >= 0. VICReg (arXiv:2105.04906), eq. 3 and 4.
    """
    z = widen(z)
    z = z - z.mean(dim=0)
    with torch.autocast(z.device.type, enabled=False):
        squares = (z.mT @ z / (len(z) - 1)).square()
    return (squares.sum() - squares.diagonal().sum()) / z.shape[1]


def invariance(z: Tensor) -> Tensor:
    """Minus the mean cosine between a view's embedding and the mean embedding of its image.

    z: (V, B, D) unit vectors -> scalar in [-1, 0]; -1 where all views of an image agree. The mean is the plain mean of
    the views and carries gradients. EMP-SSL (Tong et al., 2023, arXiv:2304.03977).
    """
    z = widen(z)
    return -F.cosine_similarity(z, z.mean(dim=0, keepdim=True), dim=-1).mean()


def coding_rate(z: Tensor, eps: float) -> Tensor:
    """MINUS the mean over views of 1/2 logdet(I + D / (B eps) Z^T Z), so that lower means more spread.

    z: (V, B, D) unit vectors -> scalar in [-B/2 ln(1 + D / (B eps)), 0]. EMP-SSL (arXiv:2304.03977); the paper
    squares eps, its released code does not: here as in the code. Not finite where z is not; never raises for it.
    """
    _, batch, width = z.shape
    # Sylvester: the B x B matrix of inner products has the same determinant as the D x D matrix, (D/B)^3 times cheaper
    identity = torch.eye(batch, dtype=widen(z).dtype, device=z.device)
    gram = identity + width / (batch * eps) * inner_products(z)
    factor: Tensor = torch.linalg.cholesky_ex(gram).L  # the checked variant would wait for the device
    return -factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1).mean()


def inner_products(z: Tensor) -> Tensor:
    """All pairs of rows, in float32 at least: (..., N, D) -> (..., N, N)."""
    z = widen(z)
    with torch.autocast(z.device.type, enabled=False):
        return z @ z.mT


def widen(z: Tensor) -> Tensor:
    """z in float32 at least; float64 stays."""
    return z.to(torch.promote_types(z.dtype, torch.float32))
