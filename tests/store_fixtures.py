"""What the tests of the store share: one record of each kind."""

from bench.record import DataInfo, Environment, EvalResult, Manifest, ProbeResult, Record, Setting, TrainResult
from bench.spec import Budget, DataSpec, RunSpec

SPEC = RunSpec(method="emp_ssl", data=DataSpec(name="synthetic"), budget=Budget.parse("4up"), seed=3)
DATA = DataInfo(
    label="synthetic",
    train=32,
    test=16,
    classes=10,
    image_shape=(3, 16, 16),
    train_sha256="a" * 64,
    test_sha256="b" * 64,
    subset=True,
)
MACHINE = Environment(
    python="3.11",
    torch="2.8.0",
    versions={},
    platform="Linux",
    cpu="some",
    cores=2,
    threads=1,
    device="cpu",
    device_name="some",
    precision="fp32",
)
TRAINED = TrainResult(
    status="finished",
    updates=4,
    epochs=2.0,
    train_seconds=1.5,
    compile_seconds=0.5,
    progress=1.0,
    images_per_second=42.0,
    forward_per_image=8.0,
    backward_input_per_image=8.0,
    backward_weight_per_image=8.0,
    flops_per_image=1e6,
    peak_memory_bytes=10**9,
    median_update_seconds=0.3,
    first_loss=2.0,
    last_loss=1.0,
    last_lr=0.0,
    losses=[(0.25, 2.0), (1.0, 1.0)],
)
RECORD = Record(
    spec=SPEC,
    adversary="free",
    data=DATA,
    settings=[Setting(name="crop_scale", value=[0.3, 1.0], source="synthetic")],
    environment=MACHINE,
    status="finished",
)


def probe(protocol="linear"):
    return ProbeResult(
        protocol=protocol,
        feature_width=24,
        penalty=0.01,
        gradient_norm=1e-7,
        scale=0.1 + 0.2,
        held_out=[(0.01, 5, 6)],
        train_correct=30,
        train_total=32,
        seconds=0.5,
    )


def result(protocol="linear", attack="pgd", eps=0.1, outcomes="0110", **changes):
    return EvalResult(
        protocol=protocol,
        attack=attack,
        threat_space="image",
        eps=eps,
        outcomes=outcomes,
        seconds=1.0,
        config={"a": 1},
        **changes,
    )


def manifest(*specs):
    return Manifest(
        bench_version="0",
        command=["bench"],
        created="2025-01-01T00:00:00+00:00",
        budget=SPEC.budget,
        runs=list(specs),
        seeds=[3],
        data=DATA,
        main_eps=0.1,
        environment=MACHINE,
    )


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def one_line(error, file):
    return str(file) in str(error.value) and "\n" not in str(error.value)


def spoil(file):
    """Flip a bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
