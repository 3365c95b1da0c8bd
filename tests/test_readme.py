"""The README is short; the options and files that it and the pages name exist. Their commands: see test_docs.py."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli

ROOT = Path(__file__).parent.parent
README, OPTIONS, TREE = (ROOT / name for name in ("README.md", "docs/options.md", "docs/tree.md"))
TEXT = "".join(page.read_text(encoding="utf-8") for page in (README, OPTIONS))


def test_the_readme_is_read_in_some_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+)[`=]", TEXT))))
def test_every_option_in_the_table_exists(option: str) -> None:
    assert any(option in CliRunner().invoke(cli, [name, "--help"]).output for name in ("run", "check", "report"))


def test_the_tree_names_files_that_exist() -> None:
    tree = re.findall(r"```\n(bench/ .*?)```", TREE.read_text(encoding="utf-8"), re.DOTALL)[0]
    named = re.findall(r"^  ((?:[a-z_]+(?:\.py|/) +)+)", tree, re.MULTILINE)
    files = [name for group in named for name in group.split()]
    assert len(files) == len(set(files))
    for name in files:
        assert (ROOT / "bench" / name).exists(), name
    beside = {file for file in (ROOT / "bench").iterdir() if not file.name.startswith("_") and file.name != "py.typed"}
    there = {file.name + "/" * file.is_dir() for file in beside}
    assert there == set(files)
