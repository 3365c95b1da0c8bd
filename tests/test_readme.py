"""The README is true: its example of a method runs, its commands and files exist."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import registry
from bench.cli import cli
from bench.encoder import build_encoder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_of_a_method_runs(tmp_path: Path) -> None:
    """The file as printed, loaded by its path, gives a loss whose gradient reaches the encoder."""
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], encoding="utf-8")
    module = registry.load("method", str(tmp_path / "mine.py"))
    config = replace(module.Config(), feature_width=16)
    assert config.adversary == "pgd"
    torch.manual_seed(0)
    method = module.Method(config).attach(build_encoder("resnet8", 3, 16))
    loss = method.loss(torch.rand(2, 8, 3, 16, 16))
    loss.backward()
    assert loss.ndim == 0
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in method.encoder.parameters())


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)[`=]", README))))
def test_every_option_in_the_table_exists(option: str) -> None:
    helps = CliRunner().invoke(cli, ["run", "--help"]).output + CliRunner().invoke(cli, ["check", "--help"]).output
    assert option in helps


def test_the_tree_names_files_that_exist() -> None:
    tree = re.findall(r"```\n(bench/ .*?)```", README, re.DOTALL)[0]
    named = re.findall(r"^  ((?:[a-z_]+(?:\.py|/) +)+)", tree, re.MULTILINE)
    files = [name for group in named for name in group.split()]
    assert len(files) == 36
    for name in files:
        assert (ROOT / "bench" / name).exists(), name
