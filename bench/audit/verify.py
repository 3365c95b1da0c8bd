"""bench verify: recompute what a run has published from the files that it left, in another process (promise P20).

Clean accuracy comes from all images, PGD and AutoAttack at the main eps from the adversarial images that are kept.
Hashes tell whether weights, probes, images and results are those that were stored. A method in a file of its own and a
foreign factory are code that the folder names and that runs here: verify only folders whose code you trust.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from attacks.common.base import predicted
from bench import registry
from bench.audit.audit import evidence, probe_hash, ranked_pair
from bench.data.images import ImageSet, Pictures, load_data
from bench.device import device as devices
from bench.evaluation.evaluated import Evaluated, chunk_images
from bench.evaluation.external_model import reload_module
from bench.evaluation.search import TrainMode, check_eval_mode
from bench.evaluation.search import verify as verify_images
from bench.identity.again import described, outdated
from bench.identity.source import Unfit, sources
from bench.protocols.common.base import protocol_of
from bench.record import EvalResult, Record
from bench.spec import RunSpec, UsageError
from bench.storage.files import Damaged, sha256
from bench.storage.store import RunFolder, load_manifest
from bench.training.build import build_method

ROUNDING = 1e-5  # of the largest logit: two batch sizes differ by less, so a smaller margin decides nothing
TOLERANCE = 0.0005  # of a number's images that may come out differently on a GPU: 0.05 points; none on a CPU


def verify(folder: Path, data_root: str | None = None, device: str = "auto") -> tuple[int, list[str]]:
    """(numbers recomputed, a sentence for each difference) of all runs in a folder that are finished.

    Raises UsageError where the folder is none of a run or has no finished run.
    """
    checked = 0
    differences: list[str] = []
    try:
        specs = load_manifest(folder).runs
    except Damaged as error:
        return 0, [str(error)]
    for spec in specs:
        run = RunFolder(folder, spec)
        try:
            record = run.record()
            if record.status == "finished":
                count, of_run = verify_run(run, record, data_root, device)
                checked += count
                differences += [f"{spec.name}: {difference}" for difference in of_run]
        except Damaged as error:  # a file that everything else of the run hangs on
            differences.append(f"{spec.name}: {error}")
    if not checked and not differences:
        raise UsageError(f"nothing to verify: {folder} has no finished run")
    return checked, differences


def other_code(folder: Path) -> str:
    """A sentence where other code than is here, which recomputes the numbers, made some of them; else ""."""
    try:
        specs = load_manifest(folder).runs
        now = sources(specs)
    except Damaged:  # a difference, which ``verify`` tells
        return ""
    except Unfit as unfit:
        return f"the code that made the numbers was not compared with that which is here: {unfit}"
    stale = [item for spec in specs for item in outdated(RunFolder(folder, spec), now[spec.row])]
    return f"the code that made the numbers is not that which is here: {described(stale)}" if stale else ""


def verify_run(run: RunFolder, record: Record, data_root: str | None, device_name: str) -> tuple[int, list[str]]:
    """(numbers recomputed, differences) of one run."""
    spec = record.spec
    device = devices.resolve(device_name)
    devices.prepare(device, record.environment.threads if record.environment else spec.threads)
    it, differences = load(run, record, device, data_root)
    test, encoder_hash = it.test, sha256(it.encoder.state_dict())
    devices.place(it.encoder, device)
    it.encoder.eval().requires_grad_(False)
    audits = {audit.protocol: audit for audit in record.audits}
    checked = 0
    for protocol in spec.eval.protocols:
        try:
            classifier = it.stored_classifier(protocol)
        except UsageError as error:
            differences.append(f"{protocol}: {error}")
            continue
        if classifier is None:
            differences.append(f"{protocol}: the probe is missing")
            continue
        differences += settings_differ(record.results, spec, protocol)
        proof = evidence(record, protocol, encoder_hash, probe_hash(run, protocol), test.sha256)
        if protocol in audits and audits[protocol].evidence != proof:
            differences.append(f"{protocol}: weights, images or results are others than those that were audited")
        chunk = chunk_images(spec.eval, protocol)
        for result in (r for r in record.results if (r.protocol, r.attack) == (protocol, "none")):
            checked += 1
            differences += flips(classifier, test.first(result.total).all_pictures("cpu"), test, result, device, chunk)
        ranked = protocol_of(spec.eval, protocol).ranked
        pair = ranked_pair(record.results, protocol, spec.eval.main_eps) if ranked else None
        for result in pair or ():
            checked += 1
            differences += verify_attack(classifier, test, run, result, device, chunk)
    return checked, differences


def settings_differ(results: list[EvalResult], spec: RunSpec, protocol: str) -> list[str]:
    """A sentence for each result that was made with another setting of its attack than --set asks for."""
    differences = []
    chosen = [r for r in results if r.protocol == protocol and r.attack in spec.eval.attack_settings]
    for result in chosen:
        attack = registry.load("attack", spec.eval.attack_paths.get(result.attack, result.attack)).Attack()
        for name, value in spec.eval.attack_settings[result.attack].items():
            made_with = result.config.get(name, getattr(attack, name))
            if made_with != value:
                made = f"made with {name} {made_with}, asked for with {value}"
                differences.append(f"{named(result)}: {made}")
    return differences


def load(
    run: RunFolder, record: Record, device: torch.device, data_root: str | None
) -> tuple[Evaluated[RunFolder], list[str]]:
    """The run as it was evaluated, its encoder not yet on the device, and in what it differs from the record."""
    spec: RunSpec = record.spec
    dataset = registry.load("dataset", spec.data.name).Dataset()
    train, test = load_data(dataset, spec.data.model_copy(update={"root": data_root} if data_root else {}))
    differences = []

    def evaluated(encoder: nn.Module) -> Evaluated[RunFolder]:
        return Evaluated(encoder, train, test, spec.eval, spec.seed, device, run)

    if record.data is None or record.data.test_sha256 != test.sha256:
        differences.append("the test images are others than those of the run")
    if spec.foreign:
        module = reload_module(run, test.image_shape[0])
        if sha256(module.state_dict()) != spec.settings["weights_sha256"]:
            differences.append("the weights are others than those that were evaluated")
        return evaluated(module), differences
    method, _ = build_method(spec, dataset, test.image_shape[0], train.classes)
    trained = run.trained()
    if trained is None:
        raise UsageError(f"expected a trained encoder in {run.path}")
    result, weights = trained
    try:
        encoder = method.kept()
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(f"the weights in {run.path} fit no {spec.method}: {error}".splitlines()[0]) from None
    if sha256(weights) != result.encoder_sha256:
        differences.append("the weights are others than those that were trained")
    return evaluated(encoder), differences


def verify_attack(
    classifier: nn.Module, test: ImageSet, run: RunFolder, result: EvalResult, device: torch.device, chunk: int
) -> list[str]:
    """Differences between an attack's result and the images that it returned: hash, ball, box and outcomes."""
    name = named(result)
    try:
        images = run.adversarial(result.protocol, result.attack)
    except UsageError as error:
        return [f"{name}: {error}"]
    if images is None:
        return [f"{name}: no images are kept"]
    differences = []
    if sha256({"images": images}) != result.images_sha256:
        differences.append(f"{name}: the images are others than those that the attack returned")
    if images.shape[1:] != test.image_shape or len(images) > result.total:
        return [*differences, f"{name}: expected images of shape {test.image_shape}, got {tuple(images.shape)}"]
    clean = test.pictures(slice(len(images)), "cpu")
    for place, (moved, image) in enumerate(zip(images, clean, strict=True)):
        try:
            verify_images(moved, image, result.threat, name)
        except RuntimeError as error:
            differences.append(f"image {place}: {error}")
    return differences + flips(classifier, images, test, result, device, chunk)


@torch.no_grad()
def flips(
    model: nn.Module, images: Tensor | Pictures, test: ImageSet, result: EvalResult, device: torch.device, chunk: int
) -> list[str]:
    """A sentence for each image whose outcome is not the published one, by more than rounding or the tolerance."""
    flipped = []
    logits = torch.cat([model(part.to(device)).cpu() for part in images.split(chunk)])
    try:
        check_eval_mode(model)
    except TrainMode as error:
        return [f"{named(result)}: {error}"]
    labels = test.labels[: len(images)].cpu()
    right = predicted(logits).eq(labels)
    chosen = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    decided = (chosen - others).abs() > ROUNDING * logits.abs().amax(dim=1)
    decided |= ~logits.isfinite().all(dim=1)
    for place, (stands, sure) in enumerate(zip(right.tolist(), decided.tolist(), strict=True)):
        published = result.outcomes[place] == "1"
        if stands != published and sure:
            words = {True: "standing", False: "broken"}
            flipped.append(f"{named(result)}: image {place} was published {words[published]} and is {words[stands]}")
    return beyond_tolerance(flipped, len(images), device)


def beyond_tolerance(found: list[str], images: int, device: torch.device) -> list[str]:
    """The differences of a number over so many images; on a GPU none where they move it by 0.05 points at most."""
    return [] if device.type == "cuda" and len(found) <= TOLERANCE * images else found


def named(result: EvalResult) -> str:
    return f"{result.protocol} {result.attack} at eps {result.threat.label}"
