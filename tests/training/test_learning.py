"""A run that would train nothing is refused in the warm-up, by name; one that learns in its own way is not."""

import pytest
import torch
import torch.nn.functional as F
from training_fixtures import flat, trained

from bench.spec import UsageError
from methods import simclr


@pytest.fixture
def twenty(digits):
    return digits.first(20)


def loss_of(body):
    """A kind of SimCLR with this loss, which gets the method and its views."""
    return type("Method", (simclr.Method,), {"loss": body})


def frozen(method, views):
    with torch.no_grad():
        features = method.encoder(views.flatten(0, 1))
    return method.projector(features).square().mean()


def detached(method, views):
    return method.projector(method.encoder(views.flatten(0, 1)).detach()).square().mean()


def constant(method, views):
    return torch.zeros((), requires_grad=True)


def of_the_weights(method, views):
    return sum(weight.square().sum() for weight in method.encoder.parameters())


def of_other_images(method, views):
    return method.projector(method.encoder(torch.rand(8, 1, 16, 16))).square().mean()


def of_zeros(method, views):
    return method.projector(method.encoder(torch.zeros_like(views.flatten(0, 1)))).sum()


def times_zero(method, views):
    return 0 * method.embed(views).sum()


@pytest.mark.parametrize("adversary", ["none", "free"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (frozen, "nothing would be trained: no gradient of the loss reaches the encoder"),
        (detached, "nothing would be trained"),
        (constant, "nothing would be trained"),
        (times_zero, "nothing would be trained"),
        (of_the_weights, "nothing would be learnt: the loss is the same for all views"),
        (of_other_images, "nothing would be learnt"),
        (of_zeros, "nothing would be"),  # trained or learnt: batch norm of equal images has hardly a gradient
    ],
)
def test_a_loss_that_trains_no_encoder_is_refused(twenty, loss, message, adversary):
    with pytest.raises(UsageError, match=message):
        trained(flat(kind=loss_of(loss), adversary=adversary), twenty, "2up")


class ZeroHead(simclr.Method):
    """A head that begins at zero lets no gradient through in its first update."""

    def build(self, width):
        super().build(width)
        self.head = torch.nn.Linear(width, 2, bias=False)
        torch.nn.init.zeros_(self.head.weight)

    def loss(self, views):
        logits = self.head(self.encoder(views.flatten(0, 1)))
        return F.cross_entropy(logits, torch.arange(len(logits)) % 2)


class Prepared(simclr.Method):
    """Views that are prepared without a gradient, by way of numpy."""

    def loss(self, views):
        with torch.no_grad():
            views = torch.from_numpy(1 - views.numpy())
        return super().loss(views)


class HalfFrozen(simclr.Method):
    """An encoder of which only the batch norm is trained."""

    def build(self, width):
        super().build(width)
        self.encoder.layers[1].requires_grad_(False)


@pytest.mark.parametrize("kind", [ZeroHead, Prepared, HalfFrozen])
def test_one_that_learns_in_its_own_way_is_trained(twenty, kind):
    result, _ = trained(flat(kind=kind), twenty, "2up")
    assert (result.status, result.updates) == ("finished", 2)


def test_the_first_update_is_that_of_a_training_without_the_tries(twenty):
    """The tries after the first leave no trace: two trainings of one seed, and the loss of the zero head is log 2."""
    results = [trained(flat(kind=ZeroHead), twenty, "2up") for _ in range(2)]
    assert results[0][0].losses == results[1][0].losses
    assert results[0][0].first_loss == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
