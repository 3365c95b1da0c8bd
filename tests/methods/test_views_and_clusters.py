"""Weak and high-pass views, and the clusters of pseudo-labels, against torchvision, closed forms and scikit-learn."""

import math

import pytest
import torch
from sklearn.cluster import KMeans
from torchvision.transforms import functional as pictures

from bench.random import Draws
from methods.common.clusters import Clusters
from methods.common.frequencies import high_pass
from methods.common.weak import padded_crop


def test_a_padded_crop_is_torchvisions():
    images = (255 * torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    draws, again = Draws(3, 0, torch.arange(5), 2), Draws(3, 0, torch.arange(5), 2)
    views = padded_crop(images, draws, padding=1 / 8, flip=0.5)
    numbers = again.uniform(3)
    mirrored = 0
    for v in range(2):
        for n in range(5):
            top, left = (int(5 * float(x)) for x in numbers[v, n, :2])
            expected = pictures.crop(pictures.pad(images[n], [2]), top, left, 16, 16)
            if numbers[v, n, 2] < 0.5:
                expected, mirrored = pictures.hflip(expected), mirrored + 1
            assert torch.equal(views[v, n], expected / 255)
    assert 0 < mirrored < 10
    assert torch.equal(padded_crop(views, draws, padding=0.0, flip=0.0), views)


@pytest.mark.parametrize("wave", [(0, 0), (1, 0), (0, 3), (2, 3), (3, 3), (4, 0), (5, -7), (8, 8)])
def test_a_high_pass_view_keeps_waves_from_its_radius_on_and_no_others(wave):
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    picture = torch.cos(2 * math.pi * (wave[0] * y + wave[1] * x) / 16 + (0.3 if 8 not in wave else 0)).double()
    kept = picture if math.hypot(*wave) >= 4 else torch.zeros_like(picture)
    assert torch.allclose(high_pass(picture[None, None], 1 / 4)[0, 0], kept, atol=1e-6)


def test_clusters_rest_where_those_of_scikit_learn_rest():
    """Half steps on all features, from the same start."""
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clusters = Clusters((2, 5), 3).double()
    clusters.begin(features[:2])
    clusters.begin(features[2:])
    optimizer = torch.optim.SGD(clusters.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        clusters.loss(features).backward()
        optimizer.step()
    for number, count in enumerate((2, 5)):
        theirs = KMeans(count, init=features[:count].numpy(), n_init=1, tol=0).fit(features.numpy())
        assert torch.allclose(clusters.centres[number], torch.from_numpy(theirs.cluster_centers_), atol=1e-9)
        assert clusters.labels(features)[number].tolist() == theirs.labels_.tolist()


def test_a_centre_without_a_feature_waits():
    clusters = Clusters((4,), 2).double()
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 0.9]], dtype=torch.float64)
    assert clusters.labels(features).tolist() == [[0, 0, 0]]
    clusters.begin(features)
    assert clusters.labels(torch.zeros(1, 2, dtype=torch.float64)).item() < 3
    clusters.loss(features + 0.1).backward()
    assert clusters.centres[0].grad[3].tolist() == [0.0, 0.0]
    assert clusters.centres[0].grad[:3] == pytest.approx(-0.1)
