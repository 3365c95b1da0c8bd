"""Every method, on an encoder that is narrow enough for tests."""

import dataclasses

import torch

from bench import registry
from bench.encoders.common.build import build_encoder

SMALL = {"batch": 6, "feature_width": 16, "hidden_width": 16, "embedding_width": 8, "eps": 0.1, "step": 0.032}


def build_tiny(name, *, seed=0, channels=1, **settings):
    """The method on a narrow ResNet-8, with 3 views at most, and as many clusters."""
    module = registry.load("method", name)
    default = module.Config()
    small = SMALL | {"views": min(default.views, 3)}
    if hasattr(default, "clusters"):
        small["clusters"] = (2, 3)
    config = dataclasses.replace(default, **small | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module.Method(config).attach(build_encoder("resnet8", channels, config.feature_width))
