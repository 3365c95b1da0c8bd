"""What other code has made is refused by name, or put aside, each part with what was made from it and nothing else."""

import contextlib
import itertools
import json
import re
import shutil

import pytest
import torch

from bench.identity.again import check_code, check_run, listed, outdated, set_aside
from bench.identity.signed import Signed
from bench.identity.source import AUDIT, CURVE, TRAINING, codes, run_code, sources
from bench.record import Audit, Check, DataInfo, EvalResult, ProbeResult, Record, TrainResult
from bench.runs.conduct import make_manifest, opened
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec, UsageError
from bench.storage import disk
from bench.storage.files import save, save_tensors
from bench.storage.store import Example, Examples, load_manifest

IMAGES = DataInfo(label="digits", train=8, test=4, classes=10, image_shape=(1, 8, 8), train_sha256="a" * 64,
                  test_sha256="b" * 64, subset=True)  # fmt: skip
EVAL = EvalSpec(attacks=("pgd", "autoattack", "fgsm"), protocols=("linear", "multi_patch"), over_time="clean")
PNG = Example(label=0, before=0, after=1, attack="pgd", image="", adversarial="", perturbation="")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the folder of a run that has finished, by a method file with a module beside it; its spec, and those files)."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mine.py").write_text("import helper\n")
    (folder / "helper.py").write_text("scale = 1\n")
    path = str(folder / "mine.py")
    spec = RunSpec(method="mine", method_path=path, data=DataSpec(name="digits"), budget=Budget.parse("5up"), eval=EVAL)
    return made(folder / "out", spec)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it with files of its own."""
    shutil.copytree(finished.out.parent, tmp_path, dirs_exist_ok=True)
    path = str(tmp_path / "mine.py")
    return Signed(tmp_path / "out", finished.spec.model_copy(update={"method_path": path}), finished.found)


def training(status="finished"):
    nothing = {name: 0 for name, field in TrainResult.model_fields.items() if field.is_required()}
    return TrainResult.model_validate(nothing | {"status": status})


def made(out, spec):
    """A folder in which the run has finished, by the code as it is."""
    with opened(out, make_manifest([spec], spec.budget, None, IMAGES, ["bench", "run"])):
        return filled(Signed(out, spec, sources([spec])[spec.row]))


def filled(run):
    """With one file of each kind."""
    run.save_record(Record(spec=run.spec, status="finished", sources=run.found))
    run.save_trained(training(), {"weight": torch.zeros(1)})
    for protocol in EVAL.protocols:
        probe = ProbeResult(protocol=protocol, feature_width=1, penalty=1.0, gradient_norm=0.0, scale=1.0,
                            held_out=[], train_correct=1, train_total=1, seconds=0.0)  # fmt: skip
        run.save_probe(probe, {"weight": torch.zeros(1), "bias": torch.zeros(1)})
        for attack in ("none", *EVAL.attacks):
            result = EvalResult(
                protocol=protocol, attack=attack, threat_space="image", eps=0.1, outcomes="11", seconds=0
            )
            if attack in ("pgd", "autoattack"):
                images = torch.full((1,), float(len(attack)))
                result = result.model_copy(update={"images_sha256": run.save_adversarial(protocol, attack, images)})
            run.save_result(result)
        run.save_examples(Examples(protocol=protocol, eps=0.1, examples=[PNG]))
    save_tensors(run.place("adversarial/linear-transfer-0.safetensors"), {"images": torch.zeros(1)})
    run.save_audits([Audit(protocol="linear", level="core", eps=0.1, checks=[Check(id="S1", verdict="PASS")])])
    run.save_curve([])
    return run


def files(run):
    """Its files, by their names below the folder of the run, but for locks."""
    found = {file.relative_to(run.path).as_posix() for file in run.path.rglob("*") if file.is_file()}
    return {name for name in found if not name.endswith(".lock")}


def again(run):
    check_code(run.out, [run.spec], again=True)
    return outdated(run, sources([run.spec])["mine"])


def refused(run):
    """The one line that is said, with nothing moved."""
    before = files(run)
    with pytest.raises(UsageError) as said:
        check_code(run.out, [run.spec])
    assert files(run) == before
    assert "\n" not in str(said.value)
    return str(said.value)


def with_other(run, changed):
    """The files behind each part, one of them changed."""
    return {part: {n: "other" if n == changed else h for n, h in each.items()} for part, each in run.found.items()}


# ---------------------------------------------------------------- what is outdated


def test_the_same_code_goes_on(run):
    before = {name: (run.path / name).read_bytes() for name in files(run)}
    for flag in (False, True):
        check_code(run.out, [run.spec], again=flag)
    assert {name: (run.path / name).read_bytes() for name in files(run)} == before
    assert load_manifest(run.out).code == {"mine": run_code(run.found)}
    assert {each.code for each in run.record().results if each.attack == "pgd"} == {codes(run.found)["attack pgd"]}


@pytest.mark.parametrize("name", ["mine.py", "helper.py"])
def test_a_changed_method_touches_all_that_was_made_of_its_training(name, run):
    whole, file = files(run), run.out.parent / name
    file.write_text(f"{file.read_text()}changed = True\n")
    assert refused(run) == (
        f"{run.out} was made by other code: {name} changed since, which touches the training of mine; choose "
        "another --out, or add --again, which puts aside what that code made and makes it again"
    )
    assert again(run) == []
    assert files(run) == {"run.json", *(f"aside/1/{each}" for each in whole)}
    assert (run.record().status, run.trained()) == ("pending", None)
    aside = json.loads((run.path / "aside/1/run.json").read_text())
    assert (aside["status"], set(aside["sources"])) == ("finished", set(run.found))


@pytest.mark.parametrize(
    ("changed", "parts", "moved"),
    [
        ("attacks/fgsm.py", ["attack fgsm"], r"results/\w+-fgsm-.*"),
        ("attacks/autoattack.py", ["attack autoattack"], r"(results|adversarial)/\w+-autoattack-.*|examples/.*"),
        ("bench/audit/checks/soundness.py", [AUDIT], r"audit\.json|adversarial/linear-transfer-.*"),
        ("bench/evaluation/curve.py", [CURVE], r"curve\.json"),
        (
            "bench/protocols/common/classifier.py",
            ["head linear", "head multi_patch", AUDIT, CURVE],
            r"(results|adversarial|examples|probes)/.*|(audit|curve)\.json",
        ),
        ("methods/common/optim.py", [TRAINING], r"(?!run\.json).*"),
        ("methods/common/adversary.py", [TRAINING], r"(?!run\.json).*"),
        ("bench/datasets/digits.py", [TRAINING], r"(?!run\.json).*"),
        ("bench/commands/output.py", [], r"(?!)"),
        ("methods/simclr.py", [], r"(?!)"),
    ],
)
def test_a_part_stands_on_the_files_that_it_uses(changed, parts, moved, run):
    whole = files(run)
    found = outdated(run, with_other(run, changed))
    assert list(dict.fromkeys(each.part for each in found)) == parts
    assert {each.files for each in found} == ({(changed,)} if parts else set())
    set_aside(run, found)
    now = files(run)
    gone = {name for name in whole if re.fullmatch(moved, name)}
    assert now & whole == whole - gone
    assert now - whole == {f"aside/1/{name}" for name in {*gone, "run.json"}}
    assert outdated(run, with_other(run, changed)) == []


def test_code_that_is_not_recorded_is_other_code(run):
    """As in folders of before there were hashes."""
    save(run.path / "train.json", run.record().train.model_copy(update={"code": ""}))
    assert "was made by other code: that of the training of mine is not known; choose" in refused(run)


def test_a_training_that_has_only_begun_has_its_code_too(run, tmp_path):
    begun = Signed(tmp_path / "begun", run.spec, run.found)
    begun.save_record(Record(spec=run.spec, status="preempted", sources=run.found))
    other = with_other(run, "helper.py")
    assert outdated(begun, other) == []  # nothing is made yet
    (begun.path / "checkpoints" / "000001").mkdir(parents=True)
    assert [each.files for each in outdated(begun, other)] == [("helper.py",)]
    set_aside(begun, outdated(begun, other))
    assert (begun.path / "aside/1/checkpoints/000001").is_dir()
    (begun.path / "checkpoints").mkdir()
    (begun.path / "run.json").unlink()  # where the record is lost, the checkpoint itself says it (bench.runs.execute)
    assert outdated(begun, other) == []


def test_a_change_while_the_command_runs_is_noticed_by_the_run(run):
    check_run(run, run.found, run_code(run.found))
    with pytest.raises(UsageError, match="the code of mine-s0 has been changed since the command began; give the same"):
        check_run(run, with_other(run, "helper.py"), run_code(run.found))
    with pytest.raises(UsageError, match=r"mine-s0 was made by other code: helper\.py changed since"):
        check_run(run, with_other(run, "helper.py"))


# ---------------------------------------------------------------- putting aside


def test_a_kill_at_any_rename_leaves_what_the_same_command_goes_on_with(run, monkeypatch):
    whole, other, real = files(run), with_other(run, "helper.py"), disk.DISK.replace
    calls = []
    for moves in itertools.count(1):
        if len(calls) < moves - 1:
            break
        copy = Signed(run.out.parent / f"out{moves}", run.spec, run.found)
        shutil.copytree(run.out, copy.out)
        calls = []

        def replace(old, new, calls=calls, moves=moves):
            calls.append(new)
            if len(calls) == moves:
                raise KeyboardInterrupt
            real(old, new)

        monkeypatch.setattr(disk.DISK, "replace", replace)
        with contextlib.suppress(KeyboardInterrupt):
            set_aside(copy, outdated(copy, other))
        monkeypatch.setattr(disk.DISK, "replace", real)
        left = outdated(copy, other)
        assert bool(left) == (len(calls) == moves)
        assert {each.files for each in left} <= {("helper.py",)}
        if left:
            set_aside(copy, left)
        assert outdated(copy, other) == []
        record = copy.record()
        assert record == Record(spec=record.spec, sources=run.found)
        assert {name.split("/", 2)[2] for name in files(copy) if name.startswith("aside/")} == whole
    assert moves > len(whole)


def test_nothing_that_was_put_aside_is_written_over(run):
    set_aside(run, outdated(run, with_other(run, "helper.py")))
    kept = {name: (run.path / name).read_bytes() for name in files(run) if name.startswith("aside/1/")}
    filled(run)
    set_aside(run, outdated(run, with_other(run, "helper.py")))
    assert {name: (run.path / name).read_bytes() for name in kept} == kept
    assert (run.path / "aside/2/train.json").is_file()


def test_a_long_list_is_cut():
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"
