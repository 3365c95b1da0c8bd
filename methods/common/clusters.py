"""Pseudo-labels: which of K centres a feature is nearest to, found within the budget in a stage of their own.

K-means batch by batch: a centre goes part of the way to the mean of those features of a batch that are nearest to it.
On all features at once it rests where Lloyd's algorithm rests; on batches it moves with what they hold, less and less
as the rate falls to 0. Sculley (2010, "Web-scale k-means clustering") has a rate for each centre, one over its count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.common.augment import Draws
from methods.common.base import Stage, setting
from methods.common.losses import widen
from methods.common.taught import Taught, TaughtConfig
from methods.common.weak import padded_crop

# A centre goes half of the way to the mean of its features, less and less towards the end of the stage.
ONLINE: dict[str, Any] = {"optimizer": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, "warm_up": 0.0}


class Clusters(nn.Module):
    """Several sets of centres, one for each of ``counts``, in a space of ``width``; each begins at a feature."""

    begun: Tensor  # int64: features that have been seen while some centre waited for one

    def __init__(self, counts: Sequence[int], width: int) -> None:
        super().__init__()
        self.centres = nn.ParameterList(nn.Parameter(torch.zeros(count, width)) for count in counts)
        self.register_buffer("begun", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def begin(self, features: Tensor) -> None:
        """Centres that have not begun take the features (B, D), in their order."""
        start = int(self.begun)
        for centres in self.centres:
            rows = features[: max(0, len(centres) - start)]
            centres[start : start + len(rows)] = rows.to(centres)
        self.begun += len(features) * (start < max(map(len, self.centres)))

    @torch.no_grad()
    def labels(self, features: Tensor) -> Tensor:
        """The nearest centre of each set that has begun: (B, D) -> (sets, B) int64."""
        labels = []
        for centres in self.centres:
            distances = torch.cdist(widen(features), widen(centres), compute_mode="donot_use_mm_for_euclid_dist")
            waits = torch.arange(len(centres), device=centres.device) >= self.begun
            labels.append(distances.masked_fill(waits, torch.inf).argmin(dim=1))
        return torch.stack(labels)

    def loss(self, features: Tensor) -> Tensor:
        """Half the squared distances of the centres to the means of their features (B, D), a scalar.

        Its gradient at a centre is the centre less that mean; zero at one without features.
        """
        features, parts = widen(features).detach(), []
        with torch.autocast(features.device.type, enabled=False):
            for centres, nearest in zip(self.centres, self.labels(features), strict=True):
                belongs = F.one_hot(nearest, len(centres)).to(features)  # (B, K)
                size = belongs.sum(dim=0)
                means = belongs.mT @ features / size.clamp(min=1)[:, None]
                parts.append(((centres - means).square().sum(dim=1) * (size > 0)).sum() / 2)
        return torch.stack(parts).sum()


@dataclass(frozen=True)
class ClusteredConfig(TaughtConfig):
    """Settings of the stage between teacher and student."""

    cluster_share: float = setting(0.02, "own")  # of the budget
    clusters: tuple[int, ...] = setting((2, 10, 50, 100, 500), "text")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("cluster_share", 0 < self.cluster_share < 1 - self.teacher_share, "in (0, 1 - teacher_share)")
        fitting = 2 <= min(self.clusters, default=0) < self.batch
        self.check("clusters", fitting, f"of at least 2, and one of them below the batch of {self.batch}")

    @property
    def traits(self) -> set[str]:
        return super().traits | {"clustered"}


class Clustered(Taught):
    """Taught, with a stage in between that sorts the teacher's features of all images into clusters.

    Its Config is a ``ClusteredConfig``.
    """

    config: ClusteredConfig
    sorts = False  # whether the stage of the clusters is under way

    def build(self, width: int) -> None:
        super().build(width)
        counts = self.config.clusters
        self.clusters = Clusters(counts, width)
        self.classifiers = nn.Linear(width, sum(counts))  # of the student: one of each number of clusters

    def stages(self) -> tuple[Stage, ...]:
        *teacher, student = super().stages()
        share = self.config.cluster_share
        sorting = Stage(share, "clusters", ONLINE | {"views": 1, "adversary": "none"})
        return *teacher, sorting, replace(student, share=student.share - share)

    def begin(self, stage: int) -> None:
        super().begin(stage)
        self.sorts = stage + 2 == len(self.stages())

    def augment(self, images: Tensor, draws: Draws) -> Tensor:
        return self.unchanged(images, draws) if self.sorts else super().augment(images, draws)

    def unchanged(self, images: Tensor, draws: Draws) -> Tensor:
        """The images themselves as a view, (1, B, C, H, W) in [0, 1]."""
        return padded_crop(images, draws, padding=0.0, flip=0.0)[:1]

    def objective(self, clean: Tensor, moved: Tensor) -> Tensor:
        if not self.sorts:
            return super().objective(clean, moved)
        features = self.told(clean[0])
        self.clusters.begin(features)
        return self.clusters.loss(features)

    def pseudo_labels(self, images: Tensor) -> Tensor:
        """(sets, B) int64 of the whole batch, for images (B / ranks, C, H, W)."""
        return self.clusters.labels(self.told(images))

    def label_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the classifiers on features (B / ranks, D) at pseudo-labels (sets, B): a scalar."""
        logits = self.gather(widen(self.classifiers(features))[None])[0].split(self.config.clusters, dim=1)
        return torch.stack([F.cross_entropy(own, target) for own, target in zip(logits, labels, strict=True)]).mean()

    @torch.no_grad()
    def told(self, images: Tensor) -> Tensor:
        """The teacher's features of the whole batch."""
        return self.gather(self.teacher(images)[None])[0]
