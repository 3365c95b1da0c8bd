"""The geometry of a threat: where an attack starts, which way is steepest, how it stays inside, how far it went.

``geometry(threat)`` gives that of the threat's norm. Images are (..., C, H, W) in [0, 1] with one ball for each
picture; in crop space (B, n, C, H, W), with one for each crop. The clean images lie in the box, so every ball reaches
into it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from bench.spec import Norm, ThreatModel


@dataclass(frozen=True)
class Geometry(ABC):
    """The ball of radius eps around each clean picture, cut with the box [0, 1] of all pictures."""

    eps: float

    @abstractmethod
    def start(self, clean: Tensor, generator: Generator) -> Tensor:
        """Uniform in the ball, then in the box. Drawn on the CPU, so that the draw is the same for every device."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of length 1 along which the loss rises most; 0 where the gradient is 0."""

    @abstractmethod
    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """The nearest pictures that are both in the ball and in the box."""

    @abstractmethod
    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        """How far each picture is from the clean one, in the norm of the ball: (..., C, H, W) -> (...)."""


# ---------------------------------------------------------------- l-inf


class Linf(Geometry):
    """Every pixel moves by eps at most."""

    def start(self, clean: Tensor, generator: Generator) -> Tensor:
        return random_start(clean, self.eps, generator)

    def steepest(self, gradient: Tensor) -> Tensor:
        return steepest(gradient)

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        return project(images, clean, self.eps)

    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        return (images - clean).abs().amax(dim=(-3, -2, -1))


def project(images: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Nearest point in the l-inf ball of radius eps around ``clean``, and then in [0, 1].

    Bounds, not a clamped difference: the distance exceeds eps by at most one rounding (below 1e-7).
    """
    return images.clamp(clean - eps, clean + eps).clamp(0, 1)


def random_start(clean: Tensor, eps: float, generator: Generator) -> Tensor:
    """Uniform in the l-inf ball, then in [0, 1]. Drawn on the CPU, so that the draw is the same for every device."""
    noise = torch.rand(clean.shape, generator=generator).to(clean)
    return project(clean + eps * (2 * noise - 1), clean, eps)


def steepest(gradient: Tensor) -> Tensor:
    """Direction of steepest ascent under the l-inf norm; 0 where the gradient is 0."""
    return gradient.sign()


# ---------------------------------------------------------------- l2


class L2(Geometry):
    """The perturbation of a picture, all pixels together, has a length of eps at most."""

    def start(self, clean: Tensor, generator: Generator) -> Tensor:
        direction = torch.randn(clean.shape, generator=generator)
        # the share of the volume within radius r is r ** d, so a uniform share of it has this radius
        radius = torch.rand(clean.shape[:-3], generator=generator) ** (1 / clean.shape[-3:].numel())
        return self.project(clean + (self.eps * of_picture(radius) * unit(direction)).to(clean), clean)

    def steepest(self, gradient: Tensor) -> Tensor:
        return unit(gradient)

    def project(self, images: Tensor, clean: Tensor) -> Tensor:
        """Both at once, not one after the other: the box cuts some pixels, and the others may then go further."""
        moved = (images - clean).double()
        share = largest_share(moved.abs().flatten(-3), room(moved, clean).flatten(-3), self.eps)
        return (clean + of_picture(share) * moved).to(clean).clamp(0, 1)

    def distance(self, images: Tensor, clean: Tensor) -> Tensor:
        return lengths((images - clean).double())


def of_picture(numbers: Tensor) -> Tensor:
    """One number for each picture (...), as (..., 1, 1, 1)."""
    return numbers[..., None, None, None]


def lengths(moves: Tensor) -> Tensor:
    """The l2 norm of each picture's move: (..., C, H, W) -> (...)."""
    squares: Tensor = moves.square().sum(dim=(-3, -2, -1))
    return squares.sqrt()


def unit(moves: Tensor) -> Tensor:
    """Each picture's move at length 1; 0 where it is 0. The largest pixel first, so that no square underflows."""
    moves = moves / of_picture(moves.abs().amax(dim=(-3, -2, -1)).clamp_min(torch.finfo(moves.dtype).tiny))
    return moves / of_picture(lengths(moves).clamp_min(1))


def room(moved: Tensor, clean: Tensor) -> Tensor:
    """How far each pixel may go, the way that it goes, before it leaves [0, 1]."""
    return torch.where(moved > 0, 1 - clean.double(), clean.double()).clamp_min(0)


def largest_share(sizes: Tensor, rooms: Tensor, eps: float) -> Tensor:
    """The largest t in [0, 1] for which min(t * sizes, rooms), the pixels of each row, has a length of eps at most.

    The nearest point of ball and box is clean + t * move, cut to the box, for this t: by the conditions of Karush,
    Kuhn and Tucker a pixel is either on the box or pulled to its clean value by a factor that all pixels share.
    sizes, rooms: (..., D), of at least 0 -> (...). The length grows with t; between two shares at which a pixel meets
    its bound its square is a + b * t^2, so with these in order the right pair is found, and t in closed form.
    """
    met = torch.where(sizes > rooms, rooms / sizes, 1.0)  # the share at which a pixel meets its bound, if below 1
    met, order = met.sort(dim=-1)
    squares = sizes.gather(-1, order).square()
    most = sizes.minimum(rooms).gather(-1, order).square()  # of pixels that have gone as far as they do
    bound = most.cumsum(dim=-1) - most
    free = squares.flip(-1).cumsum(dim=-1).flip(-1)
    beyond = bound + met.square() * free >= eps**2
    first = beyond.int().argmax(dim=-1, keepdim=True)
    left = (eps**2 - bound.gather(-1, first)).clamp_min(0)
    share = (left / free.gather(-1, first).clamp_min(torch.finfo(free.dtype).tiny)).sqrt().clamp(max=1)
    inside = most.sum(dim=-1) <= eps**2
    return torch.where(inside, 1.0, share[..., 0])


GEOMETRIES: dict[Norm, type[Geometry]] = {"linf": Linf, "l2": L2}


def geometry(threat: ThreatModel) -> Geometry:
    """That of the threat's norm, at its radius."""
    return GEOMETRIES[threat.norm](threat.eps)
