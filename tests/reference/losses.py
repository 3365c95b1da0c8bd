"""The losses of SimCLR and EMP-SSL, one view after the other, as the papers write them."""

import torch
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean over the 2B anchors of -log(exp(s_ij / t) / sum over k != i of exp(s_ik / t)), j the partner of i.

    first, second: (B, D) unit vectors -> scalar. SimCLR (Chen et al., 2020, arXiv:2002.05709), eq. 1.
    """
    batch = len(first)
    z = torch.cat([first, second])
    similarity = z @ z.T / temperature
    others = similarity[~torch.eye(2 * batch, dtype=torch.bool, device=z.device)].reshape(2 * batch, 2 * batch - 1)
    partners = torch.cat([similarity.diagonal(batch), similarity.diagonal(-batch)])
    return (others.exp().sum(dim=1).log() - partners).mean()


def invariance(z: Tensor) -> Tensor:
    """Minus the mean over views and images of cos(z_view, mean of the views).

    z: (V, B, D) unit vectors -> scalar in [-1, 0]. EMP-SSL (Tong et al., 2023, arXiv:2304.03977).
    """
    mean = sum_of(z) / len(z)
    total = z.new_zeros(())
    for view in z:
        total = total + ((view * mean).sum(dim=1) / (view.norm(dim=1) * mean.norm(dim=1))).mean()
    return -total / len(z)


def coding_rate(z: Tensor, eps: float) -> Tensor:
    """Minus the mean over views of 1/2 logdet(I + D / (B eps) Z^T Z), Z the B x D matrix of a view.

    z: (V, B, D) unit vectors -> scalar <= 0. EMP-SSL (arXiv:2304.03977), eps unsquared as in its released code.
    """
    _, batch, width = z.shape
    identity = torch.eye(width, dtype=z.dtype, device=z.device)
    total = z.new_zeros(())
    for view in z:
        total = total + torch.logdet(identity + width / (batch * eps) * view.T @ view) / 2
    return -total / len(z)


def sum_of(z: Tensor) -> Tensor:
    """Sum over the views: (V, B, D) -> (B, D)."""
    total = torch.zeros_like(z[0])
    for view in z:
        total = total + view
    return total
