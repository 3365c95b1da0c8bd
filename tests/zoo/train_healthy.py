"""Makes tests/zoo/healthy/*.safetensors: `python tests/zoo/train_healthy.py`, about five minutes on two cores.

Each encoder is trained by `bench run --budget 300up --data digits --threads 1`. Its weights are rounded to float16,
and the probe is fitted on the rounded encoder, whose clean and PGD counts must be within one image of float32's.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo import healthy

from attacks import autoattack
from bench.protocols.common.classifier import Classifier
from bench.random import stream
from bench.spec import ThreatModel
from bench.storage.store import RunFolder, load_manifest

RUNS = (("cf_amc_ssl", 2), ("emp_ssl_adv,simclr_adv,simclr_free", 1))  # methods, seeds


def counts(classifier: Classifier) -> tuple[int, int]:
    """Correct test images without an attack, and under the one PGD."""
    test = healthy.digits()[1]
    images, labels = test.images.float() / 255, test.labels
    threat, generator = ThreatModel(eps=healthy.EPS), stream(healthy.SEED, "attack", "pgd", 0)
    moved = healthy.PGD.perturb(classifier, images, labels, threat, generator)
    return tuple(int(healthy.right(classifier, x, labels).sum()) for x in (images, moved))  # type: ignore[return-value]


def attacked(classifier: Classifier) -> tuple[torch.Tensor, list[tuple[str, int]]]:
    """What AutoAttack returns for the first test images, and how many of them stand after each of its stages."""
    test = healthy.digits()[1].first(healthy.AUDITED)
    moved, labels = test.images.float() / 255, test.labels
    standing, stages = torch.arange(len(test)), []
    for name, stage in autoattack.Attack().stages(healthy.CLASSES, len(test)).items():
        generator = stream(healthy.SEED, "attack", "autoattack", 0)
        threat = ThreatModel(eps=healthy.EPS)
        moved[standing] = stage.perturb(classifier, moved[standing], labels[standing], threat, generator)
        standing = healthy.right(classifier, moved, labels).nonzero().flatten()
        stages.append((name, len(standing)))
    return moved, stages


def write(name: str, state: dict[str, torch.Tensor]) -> None:
    """Round, fit the probe, compare with float32, attack, save."""
    encoder = healthy.new_encoder()
    encoder.load_state_dict(state)
    exact = counts(healthy.fitted(encoder)[0])
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    encoder.load_state_dict(half)
    classifier, probe = healthy.fitted(encoder)
    rounded = counts(classifier)
    assert max(abs(a - b) for a, b in zip(exact, rounded, strict=True)) <= 1, (name, exact, rounded)
    adversarial, stages = attacked(classifier)
    tensors = {f"encoder.{key}": value for key, value in half.items()} | {
        "probe.weight": classifier.probe.weight,
        "probe.bias": classifier.probe.bias,
        "autoattack": adversarial,
    }
    file = healthy.FOLDER / f"{name}.safetensors"
    metadata = {"probe": probe.model_dump_json(), "stages": json.dumps(stages)}
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, file, metadata)
    file.chmod(0o644)
    size = file.stat().st_size
    print(f"{name}: clean {rounded[0]}, PGD {rounded[1]} of 297; AutoAttack {stages}; {size} bytes")


def train(folder: Path) -> None:
    """The runs, by the project's own command."""
    bench = [sys.executable, "-m", "bench", "run", "--data", "digits", "--budget", "300up", "--threads", "1"]
    scored = ["--protocols", "linear", "--attacks", "pgd", "--eps", str(healthy.EPS)]
    for methods, seeds in RUNS:
        out = folder / methods.partition(",")[0]
        subprocess.run([*bench, *scored, "--methods", methods, "--seeds", str(seeds), "--out", str(out)], check=True)


def main(folders: list[Path]) -> None:
    """Weights of the finished runs in ``folders``; without any, they are trained first."""
    torch.set_num_threads(1)
    healthy.FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if not folders:
            train(Path(scratch))
            folders = sorted(Path(scratch).iterdir())
        for spec_folder in folders:
            for spec in load_manifest(spec_folder).runs:
                trained = RunFolder(spec_folder, spec).trained()
                assert trained is not None, f"{spec.name} has not ended"
                write(spec.name, trained[1])


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
