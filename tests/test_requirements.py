"""What is installed: the versions that are tested, with the hashes of their files (SECURITY.md)."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_lock_file_pins_what_is_tested_with_hashes_and_names_no_index():
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in locked
    assert "index" not in locked
    packages = re.split(r"\n(?=\w)", locked.strip())
    assert len(packages) > 80
    for package in packages:
        assert re.match(r"[\w.-]+==[\w.]+( ; [^\n]+?)? \\\n    --hash=sha256:[0-9a-f]{64}", package), package[:80]
    versions = dict(re.findall(r"^([\w.-]+)==([\w.]+)", locked, re.MULTILINE))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    site = {re.match(r"[\w-]+", line)[0] for line in settings["dependency-groups"]["docs"]}
    only_site = site - set(versions)  # it makes the documentation, so a user installs none of it
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", tested, re.MULTILINE))
    assert site <= set(pinned)
    for name in set(pinned) - only_site:
        assert versions[name.replace("_", "-")] == pinned[name]
    project = settings["project"]
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + extras["parquet"] + extras["test"]:
        assert re.match(r"[\w-]+", line)[0] in versions, line
