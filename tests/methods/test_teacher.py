"""A teacher from a file: what it replaces, what it is refused for, and that every number of the run says so."""

import pytest
import torch
from tiny_fixtures import build_tiny

from bench.spec import Budget, UsageError
from bench.storage.files import save_tensors, sha256
from bench.training.train import train
from methods.common.norms import Branches

STUDENT = {"batch": 6, "student_batch": 6, "steps": 1}


@pytest.fixture
def given(tmp_path):
    """(the file of an encoder, its weights)."""
    weights = dict(build_tiny("simclr", seed=7).encoder.state_dict())
    save_tensors(tmp_path / "encoder.safetensors", weights)
    return str(tmp_path / "encoder.safetensors"), weights


def test_the_student_has_the_whole_budget_and_the_weights_of_the_file_stay(given, digits):
    file, weights = given
    method = build_tiny("deacl", teacher=file, **STUDENT)
    result = train(method, digits.first(12), Budget.parse("4up"), 0, torch.device("cpu"))
    assert (result.updates, result.stages) == (4, [])
    assert sha256(method.teacher.state_dict()) == sha256(weights)
    assert sha256(method.encoder.state_dict()) != sha256(build_tiny("deacl").encoder.state_dict())
    assert method.extra_data() == f"a given teacher, {sha256(weights)[:12]}"
    assert build_tiny("deacl").extra_data() == ""


def test_every_branch_of_advcls_teacher_has_the_batch_norms_of_the_file(given, digits):
    file, weights = given
    method = build_tiny("advcl", teacher=file, cluster_share=0.5, **STUDENT)
    result = train(method, digits.first(12), Budget.parse("4up"), 0, torch.device("cpu"))
    assert [stage["name"] for stage in result.stages] == ["clusters", "student"]
    names = {name for name, module in method.teacher.named_modules() if isinstance(module, Branches)}
    assert names
    for name in names:
        for norm in method.teacher.get_submodule(name).norms:
            assert torch.equal(norm.running_mean, weights[f"{name}.running_mean"])


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("nothing.safetensors", "expected teacher as the encoder.safetensors of a run, got .*no such file"),
        (
            "text.safetensors",
            "expected teacher as the encoder.safetensors of a run, got .*header of a safetensors file",
        ),
        ("wide.safetensors", "expected a teacher with the weights of this run's encoder, got .*size mismatch"),
        ("more.safetensors", r"\[\] are missing, \['backbone.layer9'\] are left over"),
        ("other.safetensors", r"are missing, \['body'\] are left over; take the encoder.safetensors"),
    ],
)
def test_a_file_that_is_no_teacher_is_refused_by_name(teacher, said, tmp_path):
    (tmp_path / "text.safetensors").write_text("x" * 100)
    save_tensors(tmp_path / "wide.safetensors", dict(build_tiny("simclr", feature_width=32).encoder.state_dict()))
    save_tensors(tmp_path / "other.safetensors", {"body": torch.zeros(3)})
    more = dict(build_tiny("simclr").encoder.state_dict()) | {"backbone.layer9": torch.zeros(3)}
    save_tensors(tmp_path / "more.safetensors", more)
    method = build_tiny("deacl", teacher=str(tmp_path / teacher))
    readable = teacher in ("wide.safetensors", "other.safetensors", "more.safetensors")
    with pytest.raises(UsageError, match=said):
        method.begin(0) if readable else method.extra_data()


def test_profeat_needs_the_projector_too():
    with pytest.raises(
        UsageError, match="expected teacher left out, as the projector of a given one is not in its file"
    ):
        build_tiny("profeat", teacher="encoder.safetensors")
