"""From what is asked for to a method on its encoder."""

from typing import Any

import torch

from bench import registry
from bench.encoders.common.build import build_encoder
from bench.random import stream
from bench.spec import RunSpec
from methods.common.base import resolve


def build_method(spec: RunSpec, dataset: Any, channels: int, classes: int = 10) -> Any:
    """(the method on its encoder, its settings with their sources); weights are a function of the seed.

    Raises UsageError for an unknown method, encoder or setting, or a bad value.
    """
    module = registry.load("method", spec.method_path or spec.method)
    config, settings = resolve(module.Config, spec.data.name, dataset.OVERRIDES, spec.settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(spec.seed, "init").initial_seed())
        encoder = build_encoder(spec.encoder_path or spec.encoder or dataset.encoder, channels, config.feature_width)
        return module.Method(config).attach(encoder, classes), settings
