"""The command line from a script of a user's: without a main guard, from standard input; and folders in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.commands import doctor
from bench.script import main_hidden
from bench.spec import UsageError
from bench.storage.store import load_manifest

ROOT = Path(__file__).parents[2]
SMALL = ["--data", "digits", "--train-images", "64", "--test-images", "16", "--attacks", "pgd", "--protocols", "linear",
         "--threads", "1", "--device", "cpu", "--budget", "2up", "--methods", "simclr", "--set", "simclr.batch=16",
         "--eps", "0.1"]  # fmt: skip


@pytest.mark.ci
def test_a_script_without_a_main_guard_goes_once(tmp_path):
    """A run in a file of the user's, which starts processes."""
    given = ["run", *SMALL, "--out", "a"]
    (tmp_path / "script.py").write_text(f"import bench.cli\nopen('times', 'a').write('x')\nbench.cli.main({given!r})\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "times").read_text() == "x"
    assert load_manifest(tmp_path / "a").command == ["bench", *given]


def test_inside_main_is_nothing_that_a_process_could_run_again():
    ours = sys.modules["__main__"]
    with main_hidden():
        hidden = sys.modules["__main__"]
        assert (getattr(hidden, "__file__", None), hidden.__spec__) == (None, None)
    assert sys.modules["__main__"] is ours


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_of_the_users_that_hides_ours_is_named_with_ours(tmp_path, whole):
    """A package before ours on the path; or any folder, where ours come from a finder, as of an editable install."""
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / ("__init__.py" if whole else "mine.txt")).write_text("")
    code = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}]\n"
    code += (
        f"sys.path.append({str(ROOT)!r})\n"
        if whole
        else f"""
from importlib.machinery import PathFinder
class Finder:
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, [{str(ROOT)!r}]) if path is None else None
sys.meta_path = [each for each in sys.meta_path if each.__module__.startswith("_frozen_importlib")] + [Finder()]
"""
    )
    code += "import bench.cli\nbench.cli.main(['list', 'methods'])"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    said = f"bench: {tmp_path / 'reports'} hides {ROOT / 'reports'}, which has the same name; rename it, or give"
    assert done.stderr.startswith(said), done.stderr
    assert done.stderr.count("\n") == 1


def test_all_is_well_where_nothing_hides_ours(monkeypatch, tmp_path):
    doctor.refuse_hidden()
    monkeypatch.setattr(doctor, "HERE", tmp_path)
    with pytest.raises(UsageError, match=r"bench hides .*; rename it, or give the command in another folder"):
        doctor.refuse_hidden()
