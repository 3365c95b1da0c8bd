"""The hash of the code: of the packages' modules and of the user's own files, by content and name."""

import shutil

import pytest
from cluster_fixtures import cells

from bench import source
from bench.spec import UsageError


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A small copy of the packages, read anew at every call."""
    for package in source.PACKAGES:
        (tmp_path / package / "common").mkdir(parents=True)
        shutil.copy(source.ROOT / package / "__init__.py", tmp_path / package)
        (tmp_path / package / "common" / "base.py").write_text("a = 1\n")
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(source, "packages", source.packages.__wrapped__)
    return tmp_path


def test_it_changes_with_every_module_and_with_nothing_else(copied):
    (spec,) = cells(1)
    before = source.source_hash(spec)
    assert len(before) == 64
    (copied / "methods" / "notes.txt").write_text("not code")
    assert source.source_hash(spec) == before
    seen = {before}
    for package in source.PACKAGES:
        (copied / package / "common" / "base.py").write_text("a = 2\n")
        seen.add(source.source_hash(spec))
    (copied / "bench" / "common" / "base.py").rename(copied / "bench" / "common" / "other.py")
    seen.add(source.source_hash(spec))
    assert len(seen) == 5


def test_a_file_of_the_users_counts_and_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (spec,) = cells(1)
    mine = spec.model_copy(update={"method_path": "mine.py"})
    with pytest.raises(UsageError, match=r"cannot read mine\.py: No such file or directory; copy it"):
        source.source_hash(mine)
    hashes = {source.source_hash(spec)}
    for text in ("one", "two"):
        (tmp_path / "mine.py").write_text(text)
        hashes.add(source.source_hash(mine))
    assert len(hashes) == 3
    attacking = spec.eval.model_copy(update={"attacks": ("pgd", "mine.py")})
    attacked = spec.model_copy(update={"eval": attacking})
    assert source.source_hash(attacked) == source.source_hash(mine)  # the same content under the same name
