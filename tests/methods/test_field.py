"""The field's methods: each loss against slow loops from its paper, what gradients and statistics it touches, cost."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_fixtures import build_tiny

from bench.random import Draws
from bench.spec import Budget, UsageError
from bench.training.train import train
from methods import acl, advcl
from methods.common.adversary import attack_mode
from methods.common.frequencies import high_pass
from methods.common.losses import covariance, nt_xent, nt_xent_of_views, variance
from methods.common.norms import Branches, branch
from tests.methods.test_losses import unit

CPU = torch.device("cpu")
THIRDS = {"teacher_share": 1 / 3, "cluster_share": 1 / 3}
PASSES = {  # by hand, for two steps of PGD: forward, backward to the input, backward to the weights
    "acl": (2 * 2 + 2 + 2, 2 * 2 + 2 + 2, 2 + 2),  # the attack on both views, the clean pair, the moved pair
    "dynacl": (2 * 2 + 2 + 2, 2 * 2 + 1 + 1, 1 + 1),  # nothing goes back through the momentum encoder but to an attack
    "rocl": (1 + 2 + 3, 2 + 3, 3),  # view 2 once for the attack on view 1, then three views
    "deacl": ((2 + 1 + 2 + 3) / 2, (2 + 2 + 2) / 2, 2),  # half of the updates are the teacher's, which is clean
    "profeat": ((2 + 2 + 2 + 3) / 2, (2 + 2 + 2) / 2, 2),
    # Half of the updates are the teacher's; a quarter asks it alone; the student asks it twice, and sees x1, x2 and h
    # beside the two that move.
    "advcl": ((2 * 2 + 1 + 4 + 2 * 2 + 6) / 4, (2 * 2 + 2 * 2 + 5) / 4, (2 * 2 + 5) / 4),
    "byol": (2 + 2, 2, 2),
    "vicreg": (2, 2, 2),
}


def double(name, **settings):
    return build_tiny(name, **settings).double().train()


def pairs_of(views=2, batch=6, seed=0):
    """(clean, moved) views in float64."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(views, batch, 1, 16, 16, generator=generator, dtype=torch.float64)
    noise = torch.rand(clean.shape, generator=generator, dtype=torch.float64)
    return clean, (clean + 0.2 * (noise - 0.5)).clamp(0, 1)


def slow_pairs(z, temperature, positives):
    """Mean over anchors of the sum over ``positives`` (pairs of views) of -log softmax over all other embeddings."""
    views, batch, _ = z.shape
    total = 0.0
    for a in range(views):
        for b in range(batch):
            others = sum(
                math.exp((z[a, b] @ z[v, i]).item() / temperature)
                for v in range(views)
                for i in range(batch)
                if (v, i) != (a, b)
            )
            total -= sum(
                (z[a, b] @ z[v, b]).item() / temperature - math.log(others) for v in range(views) if (a, v) in positives
            )
    return total / (views * batch)


def all_pairs(views):
    return {(a, b) for a in range(views) for b in range(views) if a != b}


def slow_cosine(a, b):
    return sum((x @ y).item() / (x.norm() * y.norm()).item() for x, y in zip(a, b, strict=True)) / len(a)


# ---------------------------------------------------------------- common parts


@pytest.mark.parametrize("views", [2, 3, 4])
def test_nt_xent_of_views_equals_the_slow_loop(views):
    z = unit(views, 5, 7)
    slow = slow_pairs(z, 0.5, all_pairs(views)) / (views - 1)
    assert nt_xent_of_views(z, 0.5).item() == pytest.approx(slow, rel=1e-12)
    if views == 2:
        assert nt_xent_of_views(z, 0.5).item() == pytest.approx(nt_xent(z, 0.5).item(), rel=1e-12)


def test_variance_and_covariance_equal_the_slow_loops():
    z = 0.5 * torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    means = [float(sum(z[:, d])) / 7 for d in range(4)]
    c = [[sum(float((r[d] - means[d]) * (r[e] - means[e])) for r in z) / 6 for e in range(4)] for d in range(4)]
    spread = sum(max(0.0, 1 - math.sqrt(c[d][d] + 1e-4)) for d in range(4)) / 4
    alike = sum(c[d][e] ** 2 for d in range(4) for e in range(4) if d != e) / 4
    assert variance(z).item() == pytest.approx(spread, rel=1e-12)
    assert covariance(z).item() == pytest.approx(alike, rel=1e-12)


# ---------------------------------------------------------------- losses


def test_vicreg():
    method, (clean, _) = double("vicreg"), pairs_of()
    a, b = method.projector(method.encoder(clean.flatten(0, 1))).chunk(2)
    apart = ((a - b) ** 2).mean().item()
    slow = 25 * apart + (25 * (variance(a) + variance(b)) + covariance(a) + covariance(b)).item()
    assert method.loss(clean).item() == pytest.approx(slow, abs=1e-9)


def test_byol():
    method, (clean, moved) = double("byol"), pairs_of()
    predicted = method.predictor(method.projector(method.encoder(moved.flatten(0, 1)))).chunk(2)
    told = method.teacher(clean.flatten(0, 1)).chunk(2)
    slow = 2 - (slow_cosine(predicted[0], told[1]) + slow_cosine(predicted[1], told[0]))
    assert method.objective(clean, moved).item() == pytest.approx(slow, abs=1e-9)
    assert method.adversarial_loss(moved, method.clean(clean)).item() == pytest.approx(slow, abs=1e-9)  # what it climbs


def embedded(method, module, views, norms):
    """Unit embeddings by ``module``, with one branch of batch norm, all views in one pass."""
    with branch(method, norms):
        rows = module(views.flatten(0, 1))
    return F.normalize(rows, dim=1).unflatten(0, (len(views), -1))


def test_acl():
    method, (clean, moved) = double("acl"), pairs_of()
    both = torch.nn.Sequential(method.encoder, method.projector)
    halves = [embedded(method, both, clean, 0), embedded(method, both, moved, 1)]
    slow = sum(slow_pairs(z, 0.5, all_pairs(2)) for z in halves) / 2
    assert method.objective(clean, moved).item() == pytest.approx(slow, abs=1e-9)
    assert method.adversarial_loss(moved, None).item() == pytest.approx(
        slow_pairs(halves[1], 0.5, all_pairs(2)), abs=1e-9
    )


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_dynacl(progress):
    method, (clean, moved) = double("dynacl"), pairs_of()
    method.progress = progress
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight.mul_(1.1)  # another than the online network
    both, halves = torch.nn.Sequential(method.encoder, method.projector), []
    for norms, views in ((0, clean), (1, moved)):
        online, teacher = embedded(method, both, views[:1], norms), embedded(method, method.teacher, views[1:], norms)
        halves.append(slow_pairs(torch.cat([online, teacher]), 0.5, all_pairs(2)))
    w = {0.0: 0.0, 0.5: 2 / 3 * 0.5, 1.0: 2 / 3}[progress]
    slow = ((1 - w) * halves[0] + (1 + w) * halves[1]) / 2
    assert method.objective(clean, moved).item() == pytest.approx(slow, abs=1e-9)


def test_rocl():
    method, (clean, moved) = double("rocl"), pairs_of()
    views = torch.cat([clean, moved[:1]])
    z = F.normalize(method.projector(method.encoder(views.flatten(0, 1))), dim=1).unflatten(0, (3, -1))
    slow = slow_pairs(z, 0.5, all_pairs(3)) + slow_pairs(z[1:], 0.5, all_pairs(2)) / 256
    assert method.objective(clean, moved).item() == pytest.approx(slow, abs=1e-9)


def in_the_last_stage(name, **settings):
    """The method in float64, its teacher trained a little, and the student's turn."""
    method = double(name, **settings)
    method.begin(0)
    with torch.no_grad():
        for weight in [*method.encoder.parameters(), *method.projector.parameters()]:
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    for stage in range(1, len(method.stages())):
        method.begin(stage)
    return method


def test_deacl():
    method, (clean, moved) = in_the_last_stage("deacl"), pairs_of(views=1)
    own, attacked = method.encoder(torch.cat([clean[0], moved[0]])).chunk(2)
    told = method.teacher(clean[0])
    slow = -slow_cosine(own, told) - 2 * slow_cosine(attacked, own)
    assert method.objective(clean, moved).item() == pytest.approx(slow, abs=1e-9)
    alone = method.encoder(moved[0])
    assert method.adversarial_loss(moved, method.clean(clean)).item() == pytest.approx(
        -slow_cosine(alone, told), abs=1e-9
    )


def test_profeat():
    method, (clean, moved) = in_the_last_stage("profeat"), pairs_of()
    projector = method.teacher[1]
    told, own, attacked = method.teacher[0](clean[0]), method.encoder(clean[1]), method.encoder(moved[1])
    spaces = [lambda features: features, projector]
    slow = sum(
        0.5 * (-slow_cosine(space(own), space(told)) - 8 * slow_cosine(space(attacked), space(own))) for space in spaces
    )
    assert method.objective(clean, moved).item() == pytest.approx(slow, abs=1e-9)
    target = method.clean(clean)
    climbed = -slow_cosine(attacked, own) - slow_cosine(projector(attacked), projector(told))
    assert method.adversarial_loss(moved[1:], target).item() == pytest.approx(climbed, abs=1e-9)


def slow_labels(method, image):
    """Which centre of each set is nearest to what the teacher says of an image."""
    (features,) = method.teacher(image[None])
    return [
        min(range(len(centres)), key=lambda k: (features - centres[k]).square().sum().item())
        for centres in method.clusters.centres
    ]


def test_advcl():
    method, (views, moved) = in_the_last_stage("advcl"), pairs_of(views=6)
    views[4] = high_pass(views[0], 1 / 4)
    with torch.no_grad():
        method.clusters.begin(method.teacher(views[5]))
    both = torch.nn.Sequential(method.encoder, method.head)
    others = embedded(method, both, views[2:5], advcl.CLEAN)
    z = torch.cat([embedded(method, both, moved[:1], advcl.CONTRAST), others])
    contrast = slow_pairs(z, 0.5, all_pairs(4)) / 3
    with branch(method, advcl.LABELS):
        logits = method.classifiers(method.encoder(moved[1]))
    entropy = 0.0
    for row, image in zip(logits, views[5], strict=True):
        two, three = slow_labels(method, image)
        for own, label in ((row[:2], two), (row[2:], three)):
            entropy -= own[label].item() - math.log(sum(math.exp(x.item()) for x in own))
    entropy /= 2 * len(logits)
    slow = 0.5 / 0.07 * contrast + 0.2 * entropy
    assert method.objective(views, moved).item() == pytest.approx(slow, abs=1e-9)
    climbed = method.adversarial_loss(moved[:2], method.clean(views)).item()
    assert climbed == pytest.approx(contrast + entropy, abs=1e-9)


# ---------------------------------------------------------------- gradients and statistics


def test_advcl_has_batch_norms_for_clean_images_for_the_contrast_and_for_the_labels():
    method, (views, moved) = in_the_last_stage("advcl"), pairs_of(views=6)
    inside = [module for module in method.encoder.modules() if isinstance(module, Branches)]
    before = [[norm.running_mean.clone() for norm in branches.norms] for branches in inside]
    target = method.clean(views)
    for branches, earlier in zip(inside, before, strict=True):
        same = [torch.equal(norm.running_mean, mean) for norm, mean in zip(branches.norms, earlier, strict=True)]
        assert same == [False, True, True]
    method.parts(moved[:2], target)
    assert {tuple(int(norm.num_batches_tracked) for norm in branches.norms) for branches in inside} == {(1, 1, 1)}
    kept = method.kept().eval()
    with branch(method.encoder.eval(), advcl.CONTRAST):
        assert torch.equal(kept(views[0]), method.encoder(views[0]))


def test_what_is_kept_of_advcl_before_the_student_is_the_teacher():
    """The curve over the training looks at it: at the branch that was fed, and not at an encoder that begins anew."""
    method, (views, _) = double("advcl"), pairs_of()
    method.begin(0)
    method.objective(views, views)
    with branch(method.encoder.eval(), advcl.CLEAN):
        taught = method.encoder(views[0])
    assert torch.equal(method.kept().eval()(views[0]), taught)
    method.begin(1)
    assert torch.equal(method.kept().eval()(views[0]), taught)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"views": 1}, "expected views of 2, for the teacher's loss of pairs, got 1"),
        (
            {"adversary": "free"},
            "expected adversary none: the teacher sees clean images, the student PGD's, got 'free'",
        ),
        ({"clusters": (6, 20)}, "expected clusters of at least 2, and one of them below the batch of 6"),
        ({"clusters": ()}, "expected clusters of at least 2"),
        ({"radius": -0.5}, "expected radius of at least 0, got -0.5"),
        ({"cluster_share": 0.9}, r"expected cluster_share in \(0, 1 - teacher_share\)"),
    ],
)
def test_what_cannot_be_of_advcl_is_refused(setting, said):
    with pytest.raises(UsageError, match=said):
        build_tiny("advcl", **setting)


def test_pseudo_labels_are_those_of_the_image_whatever_its_views(digits):
    """Found in the stage between the two, in which the teacher is the clean encoder and nothing else is trained."""
    images = digits.first(12)
    result = train(
        method := build_tiny("advcl", batch=6, steps=1, student_batch=6, **THIRDS),
        images,
        Budget.parse("6up"),
        0,
        CPU,
    )
    assert [cost["name"] for cost in result.stages] == ["teacher", "clusters", "student"]
    assert [cost["updates"] for cost in result.stages] == [2, 2, 2]
    draws = [Draws(seed, 0, torch.arange(6), 2) for seed in (0, 1)]
    labels = [method.pseudo_labels(method.augment(images.images[:6], own)[5]) for own in draws]
    assert torch.equal(*labels)
    assert labels[0].max() == 2


@pytest.mark.parametrize("name", ["acl", "dynacl"])
def test_each_kind_of_pass_touches_its_own_batch_norms_alone(name):
    method, (clean, moved) = double(name), pairs_of()
    norms = [module for module in method.modules() if isinstance(module, Branches)]

    def counted():
        return {tuple(int(norm.num_batches_tracked) for norm in branches.norms) for branches in norms}

    assert counted() == {(0, 0)}
    method.pair_loss(clean, acl.CLEAN)
    assert counted() == {(1, 0)}
    method.pair_loss(moved, acl.MOVED)
    assert counted() == {(1, 1)}
    before = [buffer.clone() for buffer in method.buffers()]
    with attack_mode(method, "eval"):
        method.adversarial_loss(moved, None)
    assert all(torch.equal(a, b) for a, b in zip(before, method.buffers(), strict=True))


def test_what_is_kept_has_the_statistics_of_moved_images_and_for_dynacl_the_momentum_encoder():
    for name in ("acl", "dynacl"):
        method, (clean, moved) = double(name), pairs_of()
        method.objective(clean, moved)
        source = method.encoder if name == "acl" else method.teacher[0]
        with branch(source.eval(), acl.MOVED):
            expected = source(clean[0])
        assert torch.equal(method.kept().eval()(clean[0]), expected)


@pytest.mark.parametrize(
    ("name", "views", "trained"),
    [("deacl", 1, "encoder."), ("profeat", 2, "encoder."), ("advcl", 6, ("encoder.", "head.", "classifiers."))],
)
def test_the_students_loss_reaches_the_student_alone(name, views, trained):
    method = in_the_last_stage(name)
    clean, moved = pairs_of(views=views)
    method.objective(clean, moved).backward()
    for key, weight in method.named_parameters():
        reached = weight.grad is not None and float(weight.grad.abs().sum()) > 0
        assert reached == key.startswith(trained), key
    assert not any(module.training for module in method.teacher.modules())


def test_deacls_student_begins_where_the_teacher_began_and_profeats_as_the_teacher():
    for name in ("deacl", "profeat"):
        began = double(name)
        method = in_the_last_stage(name)
        teacher = method.teacher if name == "deacl" else method.teacher[0]
        start = began.encoder if name == "deacl" else teacher
        for weight, expected in zip(method.encoder.parameters(), start.parameters(), strict=True):
            assert torch.equal(weight, expected)
        assert not all(torch.equal(a, b) for a, b in zip(teacher.parameters(), began.encoder.parameters(), strict=True))


# ---------------------------------------------------------------- schedules and cost


def test_dynacls_schedules_are_those_of_the_epochs_of_the_paper():
    method = double("dynacl")
    for e in range(1, 1001):
        method.progress = (e - 1) / 1000
        strength, weight = method.strength_and_weight()
        assert strength == pytest.approx(1 - 50 * ((e - 1) // 50) / 1000, abs=1e-12)
        assert weight == pytest.approx(2 / 3 * 50 * (e // 50) / 1000, abs=1e-12)
    method.progress = 1.0
    assert method.strength_and_weight() == pytest.approx((0.05, 2 / 3))


def test_dynacls_views_fade_into_the_image(digits):
    method, images = build_tiny("dynacl"), digits.first(6)
    apart = []
    for method.progress in (0.0, 0.5, 0.99):
        views = method.augment(images.images, Draws(0, 0, torch.arange(6), 2))
        apart.append(float((views - images.images / 255).abs().mean()))
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < apart[0] / 2


@pytest.mark.parametrize("name", PASSES)
def test_passes_are_those_of_a_count_by_hand(name, digits):
    shared = {"batch": 6, "steps": 2}
    taught = {"teacher_share": 0.5, "student_batch": 6} if name in ("deacl", "profeat", "advcl") else {}
    taught |= {"cluster_share": 0.25} if name == "advcl" else {}
    result = train(build_tiny(name, **shared, **taught), digits.first(12), Budget.parse("4up"), 0, CPU)
    counted = (result.forward_per_image, result.backward_input_per_image, result.backward_weight_per_image)
    assert counted == PASSES[name]
