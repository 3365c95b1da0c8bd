"""The door: what a command asks for, refused here where that can be told without torch, which takes seconds to load.

Every rule stands where it belongs (bench.options.options, bench.names, bench.registry); this is the order in which they
are asked. What only a loaded plug-in, the images or the device can tell comes later, in bench.options.resolve.
"""

from pathlib import Path

from bench import registry
from bench.data.corruptions import check_package
from bench.encoders.common.names import check_encoder_name
from bench.identity.outline import outline
from bench.known import check_data, check_device_name
from bench.options.attacks import check_attacks
from bench.options.options import Options, Row, asked_threats, check_targets, chosen_rows, parse_seeds, row_cells
from bench.options.protocols import asked_protocols, check_protocols
from bench.options.scoring import asked_images
from bench.options.tuned import with_tuned
from bench.spec import Budget, DataSpec, UsageError, unknown


def check(options: Options) -> None:
    """Raises UsageError for a run that cannot be, as far as that shows in what is written."""
    seeds = parse_seeds(options.seeds)
    rows = with_tuned(options, chosen_rows(options), seeds)
    total = Budget.parse(options.total_budget) if options.total_budget else None
    row_cells(options, rows, total, len(seeds))
    check_scoring(options)
    check_settings(options, rows)


def check_scoring(options: Options) -> None:
    """The same of what a training and ``bench evaluate`` share: images, encoder, device, attacks, protocols."""
    check_device_name(options.device)
    check_dataset(options.data_spec)
    if options.encoder is not None:
        check_encoder_name(options.encoder)
    check_protocols(options)
    asked_images(options)
    check_attacks(options)
    if asked_threats(options).corruptions:
        check_package()


def check_dataset(spec: DataSpec) -> None:
    """Raises UsageError for a dataset that does not exist, or is not called so, and for a folder that is missing."""
    file = registry.source("dataset", spec.name)
    declared = outline(file, "Dataset") if file is not None else None
    if declared is not None:
        check_data(
            spec,
            needs_path=declared.values.get("needs_path", False),
            takes_size="EncodedDataset" in declared.bases,
            takes_classes=declared.values.get("takes_classes", False),
        )
    for path, what in ((spec.path, "a folder of images"), (spec.root, "a folder for the data")):
        place = Path(path).expanduser() if path else None
        if place is not None and (not place.is_dir() if what == "a folder of images" else place.is_file()):
            raise UsageError(f"expected {what}, got {path}: {'no such folder' if not place.exists() else 'a file'}")
    if spec.classes is not None and not Path(spec.classes).expanduser().is_file():
        raise UsageError(f"expected a file with a wnid on each line, got --classes {spec.classes}: no such file")


def check_settings(options: Options, rows: list[Row]) -> None:
    """Raises UsageError for a method that is not run, and a setting that a method of the command does not have."""
    check_targets(options, rows, asked_protocols(options))
    for row in rows:
        file = registry.source("method", row.method)
        declared = outline(file, "Config") if file is not None else None
        for key in options.settings_of(row) if declared is not None else ():
            if declared is not None and key not in declared.fields:
                raise UsageError(unknown("setting", key, declared.fields))
