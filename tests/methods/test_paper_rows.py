"""The rows of the paper and what is beside them in the folder: settings with their sources, objectives, ceilings."""

import dataclasses

import pytest
import torch

from bench import registry
from methods import GROUPS
from methods.common.base import resolve
from tests.methods.test_methods import config_of, views_of

NAMES = ["emp_ssl", "simclr", *GROUPS["paper"], *GROUPS["supervised"]]
SELF_SUPERVISED = [name for name in NAMES if name not in GROUPS["supervised"]]
DIGITS = registry.load("dataset", "digits").Dataset().OVERRIDES
CROP, PATCH = (0.08, 1.0), (0.25, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_neither_the_papers_nor_its_codes_is_the_ceilings(name):
    _, settings = resolve(config_of(name), "cifar10", {}, {})
    own = {s.name for s in settings if s.source == "own"}
    assert own == ({"views", "batch", "adversary"} if name in GROUPS["supervised"] else set())


@pytest.mark.parametrize("name", SELF_SUPERVISED)
def test_same_views_cost_less_than_unrelated_ones(name, tiny, digits):
    method = tiny(name).train()
    views = views_of(method, digits)
    same = views[:1].expand_as(views)
    unrelated = torch.stack([view.roll(n, dims=0) for n, view in enumerate(same)])
    assert method.loss(same) < method.loss(unrelated)


class TestPaper:
    @pytest.mark.parametrize(
        ("name", "views", "batch", "adversary", "crop_scale"),
        [
            ("simclr", 2, 512, "none", CROP),
            ("simclr_adv", 2, 512, "pgd", CROP),
            ("simclr_patch_adv", 2, 512, "pgd", PATCH),
            ("simclr_free", 2, 512, "free", CROP),
            ("emp_ssl", 16, 128, "none", CROP),
            ("emp_ssl_adv", 16, 128, "pgd", CROP),
            ("emp_ssl_patch_adv", 16, 128, "pgd", PATCH),
            ("emp_ssl_patch_free", 16, 100, "free", PATCH),
            ("cf_amc_ssl", 16, 100, "free", CROP),
        ],
    )
    def test_rows(self, name, views, batch, adversary, crop_scale):
        c = config_of(name)()
        assert (c.views, c.batch, c.adversary, c.crop_scale) == (views, batch, adversary, crop_scale)
        assert c.crop_ratio == ((1.0, 1.0) if crop_scale == PATCH else (3 / 4, 4 / 3))
        mode = "eval" if name in ("simclr_adv", "simclr_patch_adv") else "batch"  # the file of simclr_adv says why
        assert (c.steps, c.replays, c.eps, c.step, c.attack_batch_norm) == (5, 3, 8 / 255, 0.01, mode)
        assert (c.random_start, c.clamp_carried, c.leak_attack_gradients, c.horizon) == (False, True, False, "scaled")
        assert (c.feature_width, c.hidden_width) == (4096, 4096)
        assert (c.lr, c.momentum, c.weight_decay, c.trust) == (0.3, 0.9, 1e-4, 0.005)
        assert (c.flip, c.jitter_probability, c.gray) == (0.5, 0.8, 0.2)
        if name.startswith("simclr"):
            assert (c.embedding_width, c.temperature, c.attack_pair) == (128, 0.07, "x1")
            assert (c.jitter, c.blur, c.solarize) == ((0.4, 0.4, 0.4, 0.1), 0.0, 0.0)
        else:
            assert (c.embedding_width, c.invariance, c.coding_eps) == (1024, 200.0, 0.2)
            assert (c.jitter, c.blur, c.solarize) == ((0.4, 0.4, 0.4, 0.2), 0.1, 0.1)

    def test_the_group_holds_the_seven_rows_of_the_table(self):
        assert sorted(GROUPS["paper"]) == sorted(name for name in SELF_SUPERVISED if name not in ("emp_ssl", "simclr"))

    @pytest.mark.parametrize("name", NAMES)
    def test_updates_per_batch_are_the_replays_of_free_training(self, name):
        assert config_of(name)().updates_per_batch == (3 if "free" in name or name == "cf_amc_ssl" else 1)

    def test_what_the_paper_does_not_say_is_marked(self):
        for name in NAMES:
            _, settings = resolve(config_of(name), "cifar10", {}, {})
            unverified = {s.name for s in settings if s.source == "unverified"}
            assert unverified == ({"crop_scale", "crop_ratio"} if "patch" in name else set())


class TestDigits:
    @pytest.mark.parametrize("name", NAMES)
    def test_overrides(self, name):
        c, settings = resolve(config_of(name), "digits", DIGITS, {})
        pair, pgd, patch = name.startswith("simclr"), "adv" in name, "patch" in name
        many = (1, 128) if name in GROUPS["supervised"] else (4, 32 if pgd else 50)
        assert (c.views, c.batch) == ((2, 100) if pair else many)
        assert c.crop_scale == (PATCH if patch else (0.3, 1.0))
        assert (c.feature_width, c.hidden_width, c.embedding_width) == (256, 256, 128)
        assert (c.flip, c.jitter, c.jitter_probability) == (0.0, (0.4, 0.0, 0.0, 0.0), 0.8)
        assert (c.gray, c.blur, c.solarize) == (0.0, 0.0, 0.0)
        assert (c.eps, c.step) == (0.1, 0.032)
        default = config_of(name)()
        kept = {s.name for s in settings if s.source != "digits"}
        assert kept >= {"lr", "momentum", "weight_decay", "trust", "adversary", "steps", "replays", "crop_ratio"}
        assert all(getattr(c, key) == getattr(default, key) for key in kept)

    def test_sources(self):
        _, settings = resolve(config_of("emp_ssl_adv"), "digits", DIGITS, {"batch": "16", "lr": 0.1})
        found = {s.name: (s.value, s.source) for s in settings}
        assert found["batch"] == (16, "--set")  # above the dataset's
        assert found["lr"] == (0.1, "--set")
        assert found["views"] == (4, "digits")
        assert found["steps"] == (5, "text")
        assert found["attack_batch_norm"] == ("batch", "sound")
        assert found["invariance"] == (200.0, "code")

    def test_an_own_field_without_source_is_the_files_own(self):
        @dataclasses.dataclass(frozen=True)
        class Config(config_of("simclr")):
            mine: int = 3

        _, settings = resolve(Config, "digits", DIGITS, {})
        assert settings[-1].model_dump() == {"name": "mine", "value": 3, "source": "own"}


class TestObjectives:
    def test_emp_ssl_sees_all_views_in_one_forward(self, tiny, digits):
        """Batch norm counts one batch per loss for EMP-SSL, and one per view for SimCLR."""
        for name, batches in (("emp_ssl", 1), ("simclr", 2)):
            method = tiny(name).train()
            method.loss(views_of(method, digits))
            norms = [m for m in method.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
            assert {int(norm.num_batches_tracked) for norm in norms} == {batches}

    def test_embeddings_are_unit_vectors(self, tiny, digits):
        for name in ("emp_ssl", "simclr"):
            method = tiny(name).train()
            z = method.embed(views_of(method, digits))
            assert z.shape == (method.config.views, 6, 8)
            torch.testing.assert_close(z.norm(dim=2), torch.ones(z.shape[:2]))

    def test_the_adversary_climbs_the_loss_of_the_pair(self, tiny, digits):
        method = tiny("simclr_adv").train()
        views = views_of(method, digits)
        assert torch.equal(method.adversarial_loss(views[1:], method.clean(views)), method.loss(views))

    def test_emp_ssl_weighs_its_two_terms(self, tiny, digits):
        """Loss = lambda * invariance + coding rate, with lambda = 200 and each term by a slow loop."""
        method = tiny("emp_ssl").train()
        views = views_of(method, digits)
        z = method.embed(views).detach().double()
        mean = z.mean(dim=0)
        cosines = [z[v, b] @ mean[b] / mean[b].norm() for v in range(3) for b in range(6)]
        rates = [torch.logdet(torch.eye(8) + 8 / (6 * 0.2) * z[v].T @ z[v]) / 2 for v in range(3)]
        expected = -200 * sum(cosines) / len(cosines) - sum(rates) / len(rates)
        assert method.loss(views).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_embeddings_of_half_precision_are_widened_before_they_are_normalized(self, tiny):
        """The norm of a bf16 vector would be rounded to 3 digits."""
        method = tiny("emp_ssl")
        method.encoder, method.projector = torch.nn.Flatten(), torch.nn.Identity()
        views = torch.rand(3, 6, 1, 2, 4).bfloat16()
        z = method.embed(views)
        assert z.dtype == torch.float32
        torch.testing.assert_close(z.norm(dim=2), torch.ones(3, 6))
        assert method.embed(views.double()).dtype == torch.float64


class TestSupervised:
    def test_loss_is_the_mean_cross_entropy_of_every_view(self, tiny, digits):
        """By a slow loop over views and images; each view of an image has the image's label."""
        method = tiny("supervised_pgd", views=3).train()
        views = views_of(method, digits)
        assert len(set(method.labels.tolist())) > 1
        logits = method.head(method.encoder(views.flatten(0, 1))).view(3, 6, 10).detach().double()
        terms = [logits[v, b].logsumexp(0) - logits[v, b, method.labels[b]] for v in range(3) for b in range(6)]
        assert method.loss(views).item() == pytest.approx((sum(terms) / 18).item(), rel=1e-5)

    @pytest.mark.parametrize("name", GROUPS["supervised"])
    def test_the_adversary_climbs_against_the_labels(self, name, tiny, digits):
        method = tiny(name).train()
        views = views_of(method, digits)
        x = views.clone().requires_grad_()
        loss = method.adversarial_loss(x, method.clean(views))
        (gradient,) = torch.autograd.grad(loss, x)
        assert method.loss((views + 0.01 * gradient.sign()).clamp(0, 1)) > loss + 0.01

    def test_the_head_has_an_output_for_each_class(self, tiny):
        method = tiny("supervised_free")
        method.attach(method.encoder, classes=7)
        assert method.head.weight.shape == (7, method.encoder.width)

    def test_without_labels_there_is_no_loss(self, tiny, digits):
        method = tiny("supervised_pgd").train()
        views = views_of(method, digits)
        method.labels = None
        with pytest.raises(ValueError, match=r"expected the labels of the batch in method\.labels, got None"):
            method.loss(views)

    def test_only_the_ceilings_read_labels(self):
        assert [name for name in NAMES if registry.load("method", name).Method.supervised] == list(GROUPS["supervised"])

    @pytest.mark.parametrize(
        ("name", "traits"),
        [
            ("supervised_free", {"all", "single", "crop", "free"}),
            ("simclr", {"all", "pair", "crop", "none"}),
            ("emp_ssl_patch_adv", {"all", "multi", "patch", "pgd"}),
        ],
    )
    def test_traits(self, name, traits):
        assert config_of(name)().traits == traits
