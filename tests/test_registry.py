"""Folders are registries: names, docstrings without an import, paths, entry points, and every mistake in them."""

import importlib.metadata
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from bench import registry
from bench.spec import UsageError

KINDS = {"method": ("Config", "Method"), "attack": ("Attack",), "encoder": ("Encoder",), "dataset": ("Dataset",)}
KINDS |= {"tracker": ("Tracker",), "protocol": ("Protocol",)}
EVERYTHING = [(kind, name) for kind in KINDS for name in registry.names(kind)]
METHODS = [
    "acl",
    "advcl",
    "byol",
    "cf_amc_ssl",
    "deacl",
    "dynacl",
    "emp_ssl",
    "emp_ssl_adv",
    "emp_ssl_patch_adv",
    "emp_ssl_patch_free",
    "profeat",
    "rocl",
    "simclr",
    "simclr_adv",
    "simclr_free",
    "simclr_patch_adv",
    "supervised_free",
    "supervised_nfgsm",
    "supervised_pgd",
    "vicreg",
]

PLUGIN = '''"""Mine (Me, 2025)."""

from dataclasses import dataclass

from methods import simclr


@dataclass(frozen=True)
class Config(simclr.Config):
    temperature: float = 0.5


Method = simclr.Method
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a plug-in file and gives its path; what it leaves in sys.modules goes away."""
    before = set(sys.modules)

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("bench_plugin_"):
            del sys.modules[name]


class TestNames:
    def test_of_methods(self):
        assert registry.names("method") == METHODS

    @pytest.mark.parametrize("kind", KINDS)
    def test_are_the_files_of_the_folder_sorted(self, kind):
        names = registry.names(kind)
        assert names == sorted(names)
        assert len(set(names)) == len(names) >= 2
        assert not any(name.startswith("_") or name == "common" for name in names)
        assert all((registry.folder(kind) / f"{name}.py").is_file() for name in names)

    def test_of_encoders(self):
        assert registry.names("encoder") == ["resnet18", "resnet8"]

    def test_a_new_file_is_found_and_a_private_one_is_not(self, tmp_path, monkeypatch):
        for name in ("zebra.py", "ape.py", "_hidden.py", "notes.txt"):
            (tmp_path / name).write_text('"""One."""\n')
        (tmp_path / "common").mkdir()
        monkeypatch.setattr(registry, "folder", lambda kind: tmp_path)
        assert registry.names("method") == ["ape", "zebra"]


class TestDescribe:
    @pytest.mark.parametrize(("kind", "name"), EVERYTHING)
    def test_every_file_opens_with_one_line(self, kind, name):
        line = registry.describe(kind, name)
        assert 20 <= len(line) <= 120
        assert line.endswith((".", ")"))

    def test_imports_nothing(self):
        """In a fresh process: describing everything loads neither torch nor any plug-in."""
        code = (
            "import sys\n"
            "from bench import registry\n"
            "lines = [registry.describe(k, n) for k in registry.PACKAGES for n in registry.names(k)]\n"
            "heavy = [m for m in sys.modules if m.partition('.')[0] in ('torch', 'numpy', 'methods', 'attacks')]\n"
            "print(len(lines), heavy)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == f"{len(EVERYTHING)} []\n"

    def test_a_file_without_docstring_has_no_line(self, tmp_path, monkeypatch):
        (tmp_path / "bare.py").write_text("x = 1\n")
        monkeypatch.setattr(registry, "folder", lambda kind: tmp_path)
        assert registry.describe("method", "bare") == ""


class TestLoad:
    @pytest.mark.parametrize(("kind", "name"), EVERYTHING)
    def test_every_name_gives_what_its_kind_must_define(self, kind, name):
        module = registry.load(kind, name)
        assert all(hasattr(module, attribute) for attribute in KINDS[kind])

    def test_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(UsageError, match=r"unknown method 'simclrr'; did you mean 'simclr'\? known: acl, advcl, "):
            registry.load("method", "simclrr")
        with pytest.raises(UsageError, match=r"unknown attack 'zzz'; known: .*pgd"):
            registry.load("attack", "zzz")

    @pytest.mark.parametrize("name", ["__init__", "common", "common.base", "../bench/run", ""])
    def test_what_is_no_plugin_is_unknown(self, name):
        with pytest.raises(UsageError, match="unknown method"):
            registry.load("method", name)


class TestPath:
    def test_a_file_of_the_users_own_counts(self, plugin):
        module = registry.load("method", plugin(PLUGIN))
        assert module.Config().temperature == 0.5
        assert issubclass(module.Config, registry.load("method", "simclr").Config)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UsageError, match=r"expected a method file, got .*nowhere\.py: no such file"):
            registry.load("method", str(tmp_path / "nowhere.py"))

    def test_a_known_name(self, plugin):
        with pytest.raises(UsageError, match="has the name of a known method; give it another name"):
            registry.load("method", plugin(PLUGIN, "simclr.py"))

    @pytest.mark.parametrize(
        ("kind", "text", "message"),
        [
            ("method", "Config = int\n", "must define Config and Method; missing: Method$"),
            ("method", "", "missing: Config, Method$"),
            ("attack", "", "must define Attack; missing: Attack$"),
            ("dataset", "", "must define Dataset; missing: Dataset$"),
            ("method", "import not_there\n", r"mine\.py cannot be imported: ModuleNotFoundError: .*not_there"),
            ("method", "def f(:\n", "cannot be imported: SyntaxError"),
            ("attack", "1 / 0\n", "the attack file .* cannot be imported: ZeroDivisionError: division by zero"),
        ],
    )
    def test_a_broken_file(self, plugin, kind, text, message):
        with pytest.raises(UsageError, match=message):
            registry.load(kind, plugin(text))


class TestEntryPoints:
    @pytest.fixture
    def installed(self, monkeypatch):
        """Pretends that a package declares method ``theirs`` at the given place."""

        def install(value):
            point = EntryPoint("theirs", value, "bench.methods")

            def entry_points(*, group, name):
                return [point] if (group, name) == (point.group, point.name) else []

            monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)

        return install

    def test_a_module_of_another_package_counts(self, installed):
        installed("methods.simclr_adv")
        assert registry.load("method", "theirs") is registry.load("method", "simclr_adv")

    def test_belongs_to_its_kind(self, installed):
        installed("methods.simclr_adv")
        with pytest.raises(UsageError, match="unknown attack 'theirs'"):
            registry.load("attack", "theirs")

    def test_one_that_cannot_be_imported(self, installed):
        installed("not_there.method")
        with pytest.raises(UsageError, match=r"the method theirs of not_there\.method cannot be imported: Module"):
            registry.load("method", "theirs")

    def test_one_without_a_method(self, installed):
        installed("methods.common.losses")
        with pytest.raises(UsageError, match=r"methods\.common\.losses must define .*; missing: Config, Method"):
            registry.load("method", "theirs")
