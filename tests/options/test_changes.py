"""What differs between two manifests is said field by field, once for all runs that it concerns, and briefly."""

import pytest

from bench.options.changes import changes
from bench.record import DataInfo, Environment, Manifest
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec

DATA = DataInfo(label="d", train=1, test=1, classes=2, image_shape=(1, 8, 8), train_sha256="a", test_sha256="b",
                subset=False)  # fmt: skip
MACHINE = Environment(python="3", torch="2", versions={}, platform="p", cpu="c", cores=1, threads=1, device="cpu",
                      device_name="c", precision="fp32")  # fmt: skip


def manifest(names=("a", "b"), budget="3up", evaluation=None, **fields):
    """Two runs, or those of other names."""
    asked = {"data": DataSpec(name="digits"), "budget": Budget.parse(budget), "eval": EvalSpec(**evaluation or {})}
    runs = [RunSpec(method=name, **asked | fields) for name in names]
    return Manifest(bench_version="0", command=[], created="", budget=Budget.parse(budget), runs=runs, seeds=[0],
                    data=DATA, main_eps=0.1, environment=MACHINE)  # fmt: skip


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (manifest(), ""),
        (manifest(evaluation={"budget_seconds": 60.0}), ""),
        (manifest(evaluation={"eps": (8 / 255,)}), "eval.eps: 0.05,0.1 there, 8/255 now"),
        (manifest(settings={"lr": 0.1}), "settings.lr: none there, 0.1 now"),
        (
            manifest(evaluation={"attack_settings": {"a": {"steps": 7}}}),
            "eval.attack_settings.a.steps: none there, 7 now",
        ),
        (manifest(evaluation={"eps_l2": (0.5, 128 / 255)}), "eval.eps_l2: none there, 0.5,128/255 now"),
        (manifest(budget="4up"), "budget: 3up there, 4up now"),
        (manifest(("a", "c")), "only there: b-s0; only now: c-s0"),
        (manifest(data=DataSpec(name="digits", train_images=64)), "data.train_images: none there, 64 now"),
        (manifest(settings={"k": "x" * 99}), f"settings.k: none there, {'x' * 57}... now"),
        (manifest(settings={str(n): n for n in range(9)}), "; and 5 more"),
    ],
)
def test_each_field_that_differs_is_told_once(new, expected):
    told = changes(manifest(), new)
    assert told == expected or (expected.startswith(";") and told.endswith(expected) and told.count(";") == 4)


def test_one_that_concerns_some_runs_names_them():
    runs = [manifest().runs[0], *manifest(settings={"lr": 0.1}).runs[1:]]
    assert (
        changes(manifest(), manifest().model_copy(update={"runs": runs})) == "settings.lr: none there, 0.1 now (b-s0)"
    )
