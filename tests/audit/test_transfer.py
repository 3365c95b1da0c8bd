"""Transfer (A14): closed forms on linear models, a target that hides its gradient, and the stage over a run folder."""

import io
import itertools
import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from audit_fixtures import EVAL, short_autoattack, subject
from torch import nn

from bench import registry
from bench.audit import audit as audits
from bench.audit.audit import run_check
from bench.audit.checks import transfer as check
from bench.audit.checks.transfer import adversarial_images, sources_of
from bench.audit.transfer import due, source, transfer
from bench.data.images import data_info, load_data
from bench.engines.local import LocalEngine
from bench.record import Check
from bench.runs.child_main import SAVE_EVERY, main
from bench.runs.conduct import make_manifest, open_folder, run_all
from bench.runs.execute import execute
from bench.runs.progress import Display
from bench.spec import Budget, DataSpec, EvalSpec, RunSpec
from bench.storage.files import load_tensors
from bench.storage.signals import Interrupted, StopFlag
from bench.storage.store import RunFolder

N, EPS = 64, 0.01


class Linear(nn.Module):
    """Two classes, by the sign of <w, x>; w (64,) has zero sum, so that grey has no class."""

    def __init__(self, seed):
        super().__init__()
        weight = torch.randn(64, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight - weight.mean())

    def forward(self, images):
        score = images.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Quantised(Linear):
    """The same weights behind 256 levels of grey: no gradient reaches the pixels."""

    def forward(self, images):
        return super().forward((images * 255).round() / 255)


def scene(target, count=N):
    """Images in [.3, .7] that ``target`` classifies right, and their labels."""
    images = 0.3 + 0.4 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    return images, target(images).argmax(1)


def target_of(model, images, labels, sources, **changes):
    """A subject of which the ranked attacks broke nothing."""
    stands = torch.ones(len(images), dtype=torch.bool)
    given = {"images": images, "labels": labels, "correct": stands, "standing": stands, "audited": len(images)}
    given |= {"spec": EvalSpec(audit="full"), "sources": sources}
    return replace(subject(eps=EPS), **given | changes, model=audits.Counted(model))


def judge(subject):
    return check.CHECKS["A14"][1](subject)


# ---------------------------------------------------------------- what a source makes, what a target loses


def test_a_linear_source_makes_the_corner_that_is_worst_for_it():
    source = Linear(1)
    images, labels = scene(source)
    moved = adversarial_images(source, images, labels, EPS, 48, torch.Generator().manual_seed(0))
    sign = (2 * labels - 1)[:, None, None, None]
    assert torch.allclose(moved, images - EPS * sign * source.weight.sign().view(1, 1, 8, 8), atol=1e-6)


def test_the_target_loses_exactly_the_images_of_the_closed_form():
    """delta = -eps y sign(w_s), so the margin y <w_t, x> falls by eps <sign(w_s), w_t>; two sources add up."""
    target, sources = Linear(0), [Linear(1), Linear(2)]
    sources[0].weight += 0.7 * target.weight  # they have something in common
    sources[1].weight += 0.7 * target.weight
    images, labels = scene(target)
    margin = (images.flatten(1) @ target.weight).abs()
    falls = [EPS * float(source.weight.sign() @ target.weight) for source in sources]
    fallen = torch.stack([margin < fall for fall in falls])
    assert min(falls) > 0
    assert all((margin - fall).abs().min() > 1e-5 for fall in falls)
    moved = {
        str(place): adversarial_images(source, images, labels, EPS, 48, torch.Generator().manual_seed(place))
        for place, source in enumerate(sources)
    }
    found = target_of(target, images, labels, {name: lambda name=name: moved[name] for name in moved})
    result = judge(found)
    assert found.broken["A14"] == fallen.any(dim=0).nonzero().flatten().tolist()
    assert len(found.broken["A14"]) >= 3
    assert (result.verdict, result.value, result.n) == ("FAIL", len(found.broken["A14"]) / N, N)
    assert result.passes == 2 * N  # a forward pass of each image from each source
    assert result.note == f"{len(found.broken['A14'])} images; 0: {int(fallen[0].sum())}, 1: {int(fallen[1].sum())}"


def test_an_undefended_twin_finds_a_target_that_hides_its_gradient():
    target, twin = Quantised(0), Linear(0)
    images, labels = scene(target)
    own = adversarial_images(target, images, labels, EPS / 100, 48, torch.Generator().manual_seed(0))
    assert torch.equal(target(own).argmax(1), labels)  # its own gradient is 0 everywhere: it goes nowhere
    moved = adversarial_images(twin, images, labels, EPS, 48, torch.Generator().manual_seed(0))
    found = target_of(target, images, labels, {"twin": lambda: moved})
    assert judge(found).verdict == "FAIL"
    fallen = (images.flatten(1) @ target.weight).abs() < EPS * target.weight.abs().sum()
    assert len(set(found.broken["A14"]) ^ set(fallen.nonzero().flatten().tolist())) <= 3  # eps is 2.55 levels of grey


@pytest.mark.parametrize(("count", "verdict"), [(0, "PASS"), (1, "PASS"), (2, "WARN"), (5, "WARN"), (6, "FAIL")])
def test_five_hundred_images_and_the_two_bounds(count, verdict):
    """Wilson's lower bound is .43 points for 5 of 500 and .55 for 6; one image is not yet a warning, but it counts."""
    target = Linear(0)
    images, labels = scene(target, 510)
    margins = (images.flatten(1) @ target.weight).abs()
    easy = margins[:500].argsort()[:count]
    moved = images.clone()
    sign = (2 * labels[easy] - 1)[:, None, None, None]
    moved[easy] -= EPS * sign * target.weight.sign().view(1, 1, 8, 8)
    assert target(moved[easy]).argmax(1).ne(labels[easy]).all()
    found = target_of(target, images, labels, {"other": lambda: moved})
    result = judge(found)
    assert (result.verdict, result.n, result.value) == (verdict, 500, count / 500)
    assert found.broken["A14"] == sorted(easy.tolist())


def test_before_the_stage_it_has_not_run_and_alone_it_does_not_apply():
    target = Linear(0)
    images, labels = scene(target)
    assert judge(target_of(target, images, labels, None)).verdict == "NOT_RUN"
    assert judge(target_of(target, images, labels, {})).note == "no other method in this run"
    assert judge(target_of(target, images, labels, None, robust=False)).verdict == "N/A"


def test_images_outside_the_ball_are_no_result():
    target = Linear(0)
    images, labels = scene(target)
    found = run_check("A14", judge, target_of(target, images, labels, {"far": lambda: images + 2 * EPS}))
    assert found.verdict == "NOT_RUN"
    assert "the attack A14 from far left its threat model" in found.note


def test_every_other_method_once_and_one_other_seed():
    def run(row, seed):
        return RunSpec(method="m", label=row, seed=seed, data=DataSpec(name="digits"), budget=Budget.parse("1up"))

    runs = [run(row, seed) for row in "ab" for seed in (0, 1, 2)] + [run("c", 4), run("c", 3)]
    names = [spec.name for spec in sources_of(run("a", 1), runs)]
    assert names == ["a-s0", "b-s1", "c-s3"]
    assert [spec.name for spec in sources_of(run("c", 3), runs)] == ["a-s0", "b-s0", "c-s4"]
    assert sources_of(run("a", 0), runs[:1]) == []


# ---------------------------------------------------------------- the stage over a folder


def spec(method, **changes):
    values = {
        "method": method,
        "settings": {"batch": 16, "views": 2},
        "data": DataSpec(name="synthetic", train_images=64, test_images=16),
        "budget": Budget.parse("2up"),
        "threads": 1,
        "eval": EVAL.model_copy(update={"eps": (0.002,), "main_eps": 0.002, "audit": "full"}),
    }
    return RunSpec(**values | changes)


SPECS = [spec("emp_ssl"), spec("emp_ssl", label="twin"), spec("emp_ssl_adv")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of three runs that have ended, each with an audit of two checks: one that passes, and A14."""
    out = tmp_path_factory.mktemp("transfer") / "out"
    table = {"S1": ("core", lambda subject: Check(id="S1", verdict="PASS")), "A14": check.CHECKS["A14"]}
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, short_autoattack():
        patch.setattr(audits, "all_checks", lambda protocol: table)
        info = data_info(*load_data(registry.load("dataset", "synthetic").Dataset(), SPECS[0].data))
        open_folder(out, make_manifest(SPECS, SPECS[0].budget, None, info, ["bench", "run"]))
        for each in SPECS:
            execute(out, each, lambda event: None, StopFlag())
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    return out


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture(scope="module")
def staged(made, tmp_path_factory):
    """The same folder after the stage."""
    out = shutil.copytree(made, tmp_path_factory.mktemp("staged") / "out")
    transfer(out)
    return out


@pytest.fixture
def done(staged, tmp_path):
    return shutil.copytree(staged, tmp_path / "done")


def found(out):
    """run -> A14, without the time that it took."""
    records = {each.name: RunFolder(out, each).record() for each in SPECS}
    checks = {name: next(c for c in record.audits[0].checks if c.id == "A14") for name, record in records.items()}
    return {name: each.model_copy(update={"seconds": 0.0}) for name, each in checks.items()}


def timeless(out):
    """What audit.json holds for each run, without the time that it took."""
    stored = [RunFolder(out, each).audits() for each in SPECS]
    return [
        audit.model_copy(update={"checks": [each.model_copy(update={"seconds": 0.0}) for each in audit.checks]})
        for audits in stored
        for audit in audits
    ]


@pytest.mark.ci
def test_a_run_alone_waits_for_the_stage_and_misses_nothing_else(out):
    assert {each.verdict for each in found(out).values()} == {"NOT_RUN"}
    records = [RunFolder(out, each).record() for each in SPECS]
    assert [(record.status, record.message) for record in records] == [("finished", "")] * 3
    assert {record.audits[0].verdict for record in records} == {"NOT_RUN"}
    assert {record.audits[0].ranked_correct > 0 for record in records} == {True}
    alone = RunFolder(out.parent / "none", SPECS[0])
    assert audits.runs_of(alone) == []


def test_the_stage_asks_every_number_once_and_counts_what_stored_images_break(out, made):
    events = []
    transfer(out, events.append)
    told = [event for event in events if event["event"] in ("about", "audit")]
    audited = [about["name"] for about, event in itertools.pairwise(told) if event["event"] == "audit"]
    assert audited == [spec.name for spec in SPECS]
    for each in SPECS:
        record = RunFolder(out, each).record()
        (audit,) = record.audits
        a14 = next(found for found in audit.checks if found.id == "A14")
        assert (a14.verdict, "2 sources" in a14.note) in (("PASS", True), ("WARN", True), ("FAIL", True))
        others = [other for other in SPECS if other.name != each.name]
        assert all(f"{other.name}: " in a14.note for other in others)
        assert a14.passes == 2 * audit.ranked_correct + 16 * 101  # 50 steps of 2 F and a last look, on 16 images
        pattern = "adversarial/*transfer*.safetensors"
        files = [file for other in others for file in RunFolder(out, other).path.glob(pattern)]
        assert len(files) == 2
        assert {tuple(load_tensors(file)["images"].shape[:1]) for file in files} == {(16,)}
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    again = []
    transfer(out, again.append)
    assert again == []
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()} == before


@pytest.mark.ci
def test_a_stage_that_is_stopped_anywhere_ends_with_the_same_audits(made, staged, tmp_path):
    for stop in (2, 5):  # between the three sources, and between the three targets
        other = shutil.copytree(made, tmp_path / str(stop))
        events = []

        def stopping(event, events=events, stop=stop):
            events.append(event)
            if len(events) == stop:
                raise Interrupted(signal.SIGTERM)

        with pytest.raises(Interrupted):
            transfer(other, stopping)
        transfer(other)
        assert timeless(other) == timeless(staged), stop


def test_a_source_that_has_changed_is_tried_again_and_one_that_failed_is_none(done):
    out = done
    before = found(out)
    folder = RunFolder(out, SPECS[2])
    result, weights = folder.trained()
    folder.save_trained(result, {name: 1.01 * tensor if "conv" in name else tensor for name, tensor in weights.items()})
    assert [target.run.spec.name for target in due(out)] == ["emp_ssl-s0", "twin-s0"]
    transfer(out)
    after = found(out)
    assert [after[name].proof != before[name].proof for name in before] == [True, True, False]
    for each in SPECS[1:]:
        folder = RunFolder(out, each)
        folder.save_record(folder.record().model_copy(update={"status": "diverged"}))
    transfer(out)
    assert found(out)["emp_ssl-s0"].verdict == "N/A"
    assert found(out)["emp_ssl-s0"].note.startswith("no other method in this run; 0 sources")


@pytest.mark.ci
def test_run_all_finds_every_run_finished_and_does_the_stage_all_the_same(out, capsys):
    assert run_all(out, SPECS, Display(), None, LocalEngine(out, SAVE_EVERY, None)) == []
    assert "NOT_RUN" not in {each.verdict for each in found(out).values()}
    printed = capsys.readouterr().err
    assert "emp_ssl-s0: finished before, not repeated" in printed
    assert f"twin-s0: linear audit {RunFolder(out, SPECS[1]).record().audits[0].verdict} (full)" in printed


def test_a_stage_that_fails_says_so_and_leaves_numbers_unranked(out):
    (RunFolder(out, SPECS[0]).path / "encoder.safetensors").write_bytes(b"damaged")
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    printed = io.StringIO()
    code = main(io.StringIO(json.dumps({"task": "transfer", "out": str(out)})), printed)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    assert code == 2
    assert "encoder.safetensors is damaged" in printed.getvalue()
    assert {each.verdict for each in found(out).values()} == {"NOT_RUN"}


def test_images_with_a_flipped_bit_are_not_used(done):
    run = RunFolder(done, SPECS[0])
    first = source(run, run.record(), "linear")
    assert first.made() is not None
    whole = first.file.read_bytes()
    first.file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert first.made() is None
