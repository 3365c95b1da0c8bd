"""Which files are behind a module, from their text: every form of import, ours and the user's, nothing installed."""

import sys

import pytest

from bench.identity.closure import ROOT, Closure

TREE = {
    "mine.py": """
import helper, numpy as np
import torch.nn.functional as F
from pkg import sub, VALUE
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import for_types
def late():
    try:
        import inside
    except ImportError:
        from . import beside
    import importlib
    importlib.import_module("named")
""",
    "helper.py": "import deep.down.there\nimport mine\n",
    "inside.py": "",
    "beside.py": "",
    "named.py": "",
    "for_types.py": "",
    "unused.py": "",
    "pkg/__init__.py": "from .core import *\nVALUE = 1\n",
    "pkg/core.py": "from ..outside import nothing\nfrom . import sub as s\n",
    "pkg/sub.py": "from .nested.leaf import x\n",
    "pkg/nested/leaf.py": "x = 1\n",  # a package without a file
    "pkg/unused.py": "",
    "deep/down/there.py": "",
}
FOUND = {
    *("mine.py", "helper.py", "inside.py", "beside.py", "named.py"),
    *("pkg/__init__.py", "pkg/core.py", "pkg/sub.py", "pkg/nested/leaf.py", "deep/down/there.py"),
}


@pytest.fixture
def tree(tmp_path):
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("importable", [False, True])
def test_a_users_file_with_all_that_lies_beside_it(tree, importable, monkeypatch):
    if importable:
        monkeypatch.syspath_prepend(str(tree))
    before = set(sys.modules)
    found = Closure()(tree / "mine.py")
    assert set(found) == FOUND
    assert set(sys.modules) == before
    for name in FOUND:
        text = (tree / name).read_text()
        (tree / name).write_text(f"{text}# another\n")
        now = Closure()(tree / "mine.py")
        assert {each for each in found if found[each] != now[each]} == {name}
        (tree / name).write_text(text)
    (tree / "unused.py").write_text("other = 1\n")
    (tree / "for_types.py").write_text("other = 1\n")
    assert Closure()(tree / "mine.py") == found


def test_is_the_same_wherever_the_files_lie(tree, tmp_path_factory):
    there = tmp_path_factory.mktemp("elsewhere")
    for name, text in TREE.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(text)
    assert Closure()(there / "mine.py") == Closure()(tree / "mine.py")


def test_two_modules_of_one_name_are_told_apart(tree, tmp_path_factory, monkeypatch):
    """Which of them Python takes may depend on what a file does to sys.path: both count."""
    there = tmp_path_factory.mktemp("first")
    (there / "helper.py").write_text("first = 1\n")
    monkeypatch.syspath_prepend(str(there))
    found = Closure()(tree / "mine.py")
    assert set(found) == {*FOUND, "helper.py (2)"}
    assert found["helper.py"] != found["helper.py (2)"]


def test_ours_is_followed_by_its_imports_and_stops_at_what_is_compared_itself():
    found = Closure()("bench.training.train", "methods.cf_amc_ssl")
    assert {"bench/training/train.py", "methods/common/optim.py", "methods/cf_amc_ssl.py", "methods/emp_ssl.py"} < set(
        found
    )
    assert {"attacks/common/base.py", "methods/common/adversary.py"} < set(found)  # the adversary of the training
    strange = (
        "attacks/pgd.py",
        "bench/evaluation/evaluate.py",
        "bench/storage/store.py",
        "bench/spec.py",
        "reports/rows.py",
    )
    assert not set(strange) & set(found)
    assert all((ROOT / name).is_file() for name in found)


def test_of_what_is_installed_only_the_package_of_a_plug_in_counts(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    for name, text in {"theirs/__init__.py": "", "theirs/method.py": "import others, theirs.loss", "theirs/loss.py": "",
                       "others.py": ""}.items():  # fmt: skip
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(str(site))
    assert Closure()("theirs.method") == {}
    assert set(Closure()("theirs.method", within="theirs")) == {
        "theirs/__init__.py",
        "theirs/method.py",
        "theirs/loss.py",
    }


@pytest.mark.parametrize("content", [b"def broken(:\n", b"\xff\xfe", b"import \x00", b"import nowhere.to.be.found\n"])
def test_a_file_that_cannot_be_followed_still_counts(content, tmp_path):
    (tmp_path / "odd.py").write_bytes(content)
    assert set(Closure()(tmp_path / "odd.py")) == {"odd.py"}


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match="No such file") as found:
        Closure()(tmp_path / "gone.py")
    assert found.value.filename.endswith("gone.py")
