"""From options to runs: every run as a RunSpec, with all that can be refused refused before the first of them."""

from pathlib import Path

from bench import registry
from bench.cores import default_threads
from bench.data.images import checked_info, load_data, remarks
from bench.device import device as devices
from bench.encoders.common.build import check_encoder, check_images
from bench.encoders.common.names import encoder_fields
from bench.options.memory import check_memory
from bench.options.options import Options, check_targets, chosen_rows, parse_seeds, row_cells
from bench.options.protocols import asked_protocols
from bench.options.scoring import evaluation
from bench.options.threats import check_images as check_threats
from bench.options.tuned import check_tuned_encoder, with_tuned
from bench.record import DataInfo
from bench.spec import Budget, RunSpec, UsageError
from bench.text import say
from bench.training.stages import check_stages
from methods.common.base import BaseMethod
from methods.common.base import resolve as resolve_settings


def resolve(options: Options, here: bool = True) -> tuple[list[RunSpec], Budget | None, Budget | None, DataInfo]:
    """(runs, the budget that they share, the total, the data), all checked at the door. Raises UsageError.

    Where runs are not made ``here``, a device is taken to be there.
    """
    seeds = parse_seeds(options.seeds)
    rows = with_tuned(options, chosen_rows(options), seeds)
    check_targets(options, rows, asked_protocols(options))
    total = Budget.parse(options.total_budget) if options.total_budget else None
    cells = row_cells(options, rows, total, len(seeds))
    device = devices.resolve(options.device) if here else devices.elsewhere(options.device)
    if here:
        devices.check_ranks(device, options.gpus_per_run, options.compile)
    data = options.data_spec
    dataset = registry.load("dataset", data.name).Dataset()
    encoder = options.encoder or dataset.encoder
    check_encoder(encoder)
    check_tuned_encoder(options, encoder)
    scoring = evaluation(options, dataset, device)
    train_set, test_set = load_data(dataset, data)
    info = checked_info(train_set, test_set)
    for remark in remarks(info):
        say(remark, err=True)
    check_threats(scoring, test_set.image_shape)
    channels, _, side = train_set.image_shape
    sizes = {test_set.image_shape[1:]: "images to evaluate on"}
    specs: list[RunSpec] = []
    for turn, seed in enumerate(seeds):
        for place in range(len(cells)):
            row, budget, label = cells[(place + turn) % len(cells)]  # interleaved over the seeds
            spec = RunSpec(
                method=Path(row.method).stem,
                method_path=str(Path(row.method).resolve()) if row.method.endswith(".py") else None,
                label=label,
                settings=row.settings if row.tuned else options.settings_of(row),
                tuned=row.tuned,
                data=data,
                seed=seed,
                budget=budget,
                device=str(device),
                gpus_per_run=options.gpus_per_run,
                precision=options.precision or devices.default_precision(device),
                compiled=options.compile,
                threads=options.threads or default_threads(device.type),
                **encoder_fields(options.encoder),
                eval=scoring,
            )
            specs.append(spec)
            if seed == seeds[0]:
                module = registry.load("method", row.method)
                config, _ = resolve_settings(module.Config, data.name, dataset.OVERRIDES, spec.settings)
                if getattr(module.Method, "augment", None) is BaseMethod.augment:  # views of another's size are its own
                    sizes.setdefault((config.view_side(side),) * 2, f"views of {row.label}")
                try:
                    method = module.Method(config)
                    method.extra_data()
                    check_stages(method, len(train_set), budget, options.gpus_per_run)
                except UsageError:
                    raise
                except Exception as error:  # of a user's file
                    raise UsageError(f"{row.method}: {type(error).__name__}: {error}".splitlines()[0]) from None
    check_images(encoder, channels, sizes)
    if here:
        check_memory(scoring, encoder, test_set.image_shape, len(train_set), device)
    budgets = {budget for _, budget, _ in cells}
    return specs, budgets.pop() if len(budgets) == 1 else None, total, info
