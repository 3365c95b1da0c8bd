"""Passes that fit into memory: the same logits, losses and gradients, in parts no larger than what fitted."""

import pytest
import torch
from torch import nn

from attacks.common.base import cross_entropy
from attacks.common.passes import Passes


class Small(nn.Module):
    """A linear model that has memory for so many images at once; ``sizes`` of all passes that were tried."""

    def __init__(self, room):
        super().__init__()
        self.room, self.sizes = room, []
        self.weight = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return images.flatten(1) @ self.weight


@pytest.fixture
def scene():
    """Images (10, 3, 2, 2) and labels."""
    return torch.rand(10, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(10) % 5


def expected(images, labels):
    """Logits, losses and the gradient of cross-entropy, softmax minus one-hot through the weight."""
    weight = Small(99).weight
    logits = images.flatten(1) @ weight
    slope = (logits.softmax(1) - nn.functional.one_hot(labels, 5)) @ weight.T
    return logits, -logits.log_softmax(1)[torch.arange(len(labels)), labels], slope.view_as(images)


def test_without_a_limit_it_is_one_pass(scene):
    model = Small(99)
    found = Passes(model, cross_entropy)(*scene, gradients=True)
    assert model.sizes == [10]
    for actual, wanted in zip(found, expected(*scene), strict=True):
        torch.testing.assert_close(actual, wanted)
        assert not actual.requires_grad
    assert not scene[0].requires_grad


@pytest.mark.parametrize("gradients", [True, False])
def test_out_of_memory_halves_the_pass_until_it_fits_and_keeps_the_size(scene, gradients, caplog):
    model = Small(3)
    passes = Passes(model, cross_entropy)
    for sizes in ([10, 5, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2]):
        model.sizes.clear()
        logits, losses, slope = passes(*scene, gradients=gradients)
        assert model.sizes == sizes
        wanted = expected(*scene)
        torch.testing.assert_close(logits, wanted[0])
        torch.testing.assert_close(losses, wanted[1])
        assert slope is None if not gradients else torch.allclose(slope, wanted[2], atol=1e-6)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: passes of 5 images, not 10; the draws stay the same",
        "out of memory: passes of 2 images, not 5; the draws stay the same",
    ]


def test_fewer_images_than_the_pass_that_fitted_are_halved_from_their_own_number(scene):
    model = Small(5)
    passes = Passes(model, cross_entropy)
    passes(*scene, gradients=False)
    model.room = 1
    model.sizes.clear()
    passes(scene[0][:2], scene[1][:2], gradients=False)
    assert model.sizes == [2, 1, 1]


def test_one_image_that_does_not_fit_is_an_error(scene):
    model = Small(0)
    with pytest.raises(torch.OutOfMemoryError):
        Passes(model, cross_entropy)(*scene, gradients=True)
    assert model.sizes == [10, 5, 2, 1]


@pytest.mark.parametrize("gradients", [True, False])
def test_gradients_are_on_only_where_they_are_asked_for_whatever_the_caller_has_set(scene, gradients):
    seen = []

    def loss(logits, labels):
        seen.append(torch.is_grad_enabled())
        return cross_entropy(logits, labels)

    with torch.set_grad_enabled(not gradients):
        Passes(Small(99), loss)(*scene, gradients=gradients)
    assert seen == [gradients]
