"""Broken defences (protocol 3.5, T2): each publishes a robust accuracy that its named check must not let pass.

All but one are built around a healthy encoder. A subject holds what the broken evaluation itself would publish.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from evaluation_fixtures import build_classifier
from torch import Generator, Tensor, nn
from zoo import healthy, overfitted

from attacks import pgd
from bench.audit.checks.subject import Counted, Subject
from bench.encoders.common.folding import fold_batch_norm
from bench.protocols.common.classifier import MultiPatch, fixed_boxes
from bench.random import stream
from bench.spec import ThreatModel
from bench.storage.files import sha256

BASE = "cf_amc_ssl-s0"
FEW = 32  # images that show a fault which touches them all


@dataclass(frozen=True)
class Broken:
    """How the subject is made, the checks meant for it, and the least verdict that one of them must give."""

    make: Callable[[], Subject]
    checks: tuple[str, ...]
    least: str = "FAIL"


def around(
    wrapper: Callable[[nn.Module], nn.Module] | None = None,
    attack: pgd.Attack = healthy.PGD,
    audited: int = healthy.AUDITED,
) -> Subject:
    """The healthy classifier, inside ``wrapper`` if there is one, as ``attack`` finds it on so many images."""
    model, probe = healthy.classifier(BASE)
    return healthy.subject(wrapper(model) if wrapper else model, probe, attack=attack, audited=audited)


# ---------------------------------------------------------------- models that mislead an attack


class Wrapped(nn.Module):
    """A classifier inside another function."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Quantized(Wrapped):
    """Pixels rounded to 8 levels: no gradient reaches them (Athalye et al., 2018: shattered gradients)."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner((images * 7).round() / 7)
        return logits


class Scaled(Wrapped):
    """Logits times 10,000: the softmax saturates, and the gradient of the cross-entropy underflows."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 1e4 * self.inner(images)
        return logits


class Noisy(Wrapped):
    """Gaussian noise on the pixels, drawn anew in every pass."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images + 8 / 255 * torch.randn_like(images))
        return logits


class Probabilities(Wrapped):
    """The softmax's output in place of logits."""

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.inner(images).softmax(dim=1)
        return probabilities


class Purified(Wrapped):
    """Three steps towards lower entropy before every prediction; attacks differentiate through none of them."""

    def forward(self, images: Tensor) -> Tensor:
        moved = images.detach()
        with torch.enable_grad():
            for _ in range(3):
                moved.requires_grad_()
                p = self.inner(moved).log_softmax(dim=1)
                entropy = -(p.exp() * p).sum()
                moved = (moved - 0.01 * torch.autograd.grad(entropy, moved)[0].sign()).detach()
        logits: Tensor = self.inner(images + (moved - images).detach())
        return logits


class Detached(Wrapped):
    """Features cut off from the images; the term of weight 0 only keeps autograd from raising."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images.detach()) + 0 * images.sum()
        return logits


class Winners(nn.Module):
    """k-winners-take-all (Xiao et al., 2020, arXiv:1905.10510): the largest fifth of each image's activations."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        threshold = flat.topk(max(1, flat.shape[1] // 5), dim=1).values[:, -1]
        return x * (flat >= threshold[:, None]).view_as(x)


def k_winners() -> Subject:
    """The encoder with every ReLU replaced, under a probe of its own."""
    encoder = healthy.encoder(BASE)
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, Winners())
    return healthy.subject(*healthy.fitted(encoder, band_images=1, train_images=500), audited=FEW)


def batch_statistics() -> Subject:
    """Batch norm left in train mode: every pass moves the buffers, and an image's logits depend on its neighbours."""
    model = build_classifier("linear", healthy.encoder(BASE), (16, 16), 1, 0)
    trained, probe = healthy.classifier(BASE)
    model.probe = trained.probe
    modules = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for module in modules:
        module.train()
    subject = healthy.subject(model, probe)
    for module in modules:  # the subject's own eval() has undone it
        module.train()
    return subject


class OtherCrops(MultiPatch):
    """Crops of one list where a prediction counts, of another where a gradient is asked for."""

    def __init__(self, encoder: nn.Module, boxes: Tensor, size: tuple[int, int]) -> None:
        super().__init__(encoder, boxes, size)
        self.other = MultiPatch(nn.Identity(), fixed_boxes(len(boxes), size, seed=1), size)

    def crops(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            return self.other.crops(images)
        return super().crops(images)


class CropsByPlace(OtherCrops):
    """Crops of a list that depends on the image's place in its batch (protocol 1.1)."""

    def crops(self, images: Tensor) -> Tensor:
        both = torch.stack([MultiPatch.crops(self, images), self.other.crops(images)])
        places = torch.arange(len(images), device=images.device)
        return both[places % 2, places]


def different_crops(model: type[OtherCrops]) -> Subject:
    """Attack and score look at different crops."""
    fitted, probe = healthy.fitted(healthy.encoder(BASE), "multi_patch", band_images=1, train_images=500)
    size = (16, 16)
    broken = model(fitted.encoder, fixed_boxes(healthy.SPEC.crops, size, healthy.SPEC.crop_seed), size)
    broken.probe = fitted.probe
    return healthy.subject(broken.eval().requires_grad_(False), probe, protocol="multi_patch", audited=FEW)


# ---------------------------------------------------------------- evaluations that mislead


def two_steps() -> Subject:
    """PGD of 2 steps of eps/4: no pixel can cross the ball."""
    return around(attack=replace(healthy.PGD, steps=2))


@dataclass(frozen=True, kw_only=True)
class Unclipped(pgd.Attack):
    """PGD that keeps to the ball and forgets the box."""

    def perturb(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        generator: Generator,
        attacked: Tensor | None = None,
    ) -> Tensor:
        noise = torch.rand(images.shape, generator=generator)
        moved = images + threat.eps * (2 * noise - 1)
        for _ in range(self.steps):
            moved.requires_grad_()
            loss = F.cross_entropy(model(moved), labels, reduction="sum")
            gradient = torch.autograd.grad(loss, moved)[0]
            moved = moved.detach() + self.step(threat.eps) * gradient.sign()
            moved = moved.clamp(images - threat.eps, images + threat.eps)
        return moved


def no_clipping() -> Subject:
    """Adversarial images outside [0, 1]."""
    return around(attack=Unclipped(restarts=1))


class Bytes(Wrapped):
    """The classifier for pixels in 0..255."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images / 255)
        return logits


def wrong_unit() -> Subject:
    """Pixels in 0..255 against an eps in fractions: the ball is 255 times too small."""
    subject = around()
    model = Bytes(subject.model.model).eval()
    pixels, labels = subject.images * 255, subject.labels
    first, truth = pixels[: subject.audited], labels[: subject.audited]
    generator = stream(healthy.SEED, "attack", "pgd", 0)
    moved = Unclipped(restarts=1).perturb(model, first, truth, ThreatModel(eps=healthy.EPS), generator)
    stands = healthy.right(model, moved, truth)
    outcomes = "".join("1" if each else "0" for each in stands.tolist())
    return replace(
        subject,
        model=Counted(model).eval(),
        images=pixels,
        standing=stands,
        adversarial=dict.fromkeys(subject.adversarial, moved),
        results={
            cell: found if cell[1] == 0 else found.model_copy(update={"outcomes": outcomes})
            for cell, found in subject.results.items()
        },
    )


def random_weights() -> Subject:
    """The trained encoder's numbers, and a model whose weights ``strict=False`` left as they were drawn."""
    loaded = healthy.new_encoder(seed=1)
    state = {f"module.{name}": tensor for name, tensor in healthy.encoder(BASE).state_dict().items()}
    loaded.load_state_dict(state, strict=False)
    model = build_classifier("linear", fold_batch_norm(loaded), (16, 16), 1, 0)
    model.probe = healthy.classifier(BASE)[0].probe
    subject = around()
    hashes = subject.loaded | {"encoder": sha256(model.state_dict())}
    return replace(subject, model=Counted(model).eval(), loaded=hashes)


def shuffled_labels() -> Subject:
    """Labels in another order than the images'."""
    subject = around()
    order = torch.randperm(len(subject.labels), generator=stream(0, "shuffled labels"))
    labels = subject.labels[order]
    hashes = subject.loaded | {"test": replace(healthy.digits()[1], labels=labels).sha256}
    return replace(subject, labels=labels, loaded=hashes)


BROKEN = {
    "input quantisation": Broken(lambda: around(Quantized), ("A1",)),
    "logits x 1e4": Broken(lambda: around(Scaled, audited=FEW), ("A1", "A19", "A23")),
    "input noise": Broken(lambda: around(Noisy, audited=FEW), ("S10",)),
    "softmax output": Broken(lambda: around(Probabilities, audited=FEW), ("S9",)),
    "test-time optimisation": Broken(lambda: around(Purified, audited=FEW), ("S11",)),
    "catastrophic overfitting": Broken(lambda: healthy.subject(overfitted.classifier()), ("A16",), "WARN"),
    "2-step attack": Broken(two_steps, ("S2",)),
    "train-mode batch norm": Broken(batch_statistics, ("S6",)),
    "wrong unit of eps": Broken(wrong_unit, ("S4", "A10")),
    "k winners take all": Broken(k_winners, ("A2",)),
    "random weights": Broken(random_weights, ("S5",)),
    "no clipping": Broken(no_clipping, ("S4",)),
    "detached features": Broken(lambda: around(Detached), ("A1",)),
    "different crops": Broken(lambda: different_crops(OtherCrops), ("S7", "M3")),
    "shuffled labels": Broken(shuffled_labels, ("S5", "S8")),
    # beyond the fifteen: the same fault as "different crops", seen from the batch
    "crops by place": Broken(lambda: different_crops(CropsByPlace), ("S7", "M1", "M3")),
}
