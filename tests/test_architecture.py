"""The house rules that a reader relies on, read from the source: who imports whom, who writes files, who names CUDA."""

import ast
import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "methods", "attacks", "reports")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
NAMES = {str(file.relative_to(ROOT)): file for file in FILES}


@functools.cache
def trees():
    """name -> what the file says; read when a test asks, not by every process that collects."""
    return {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in NAMES.items()}


@dataclass(frozen=True)
class Import:
    """Module ``source`` imports module ``target`` somewhere."""

    source: str
    target: str
    inside_function: bool
    typing_only: bool


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file) for file in FILES}


def imports_of(file):
    """All imports of a file; ``from package import module`` counts as an import of the module."""
    found = []

    def visit(node, inside, typing):
        for child in ast.iter_child_nodes(node):
            names = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}: relative import"
                names = [
                    f"{child.module}.{alias.name}" if f"{child.module}.{alias.name}" in MODULES else child.module
                    for alias in child.names
                ]
            found.extend(Import(module_name(file), name, inside, typing) for name in dict.fromkeys(names))
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            visit(child, inside or function, typing or checking)

    visit(trees()[str(file.relative_to(ROOT))], False, False)
    return found


@functools.cache
def imports():
    return [each for file in FILES for each in imports_of(file)]


def loads(target):
    """Modules that import ``target`` or something inside it."""
    return {i for i in imports() if i.target == target or i.target.startswith(target + ".")}


# ---------------------------------------------------------------- imports run one way

FLOORS = """
    bench.usage
    bench.radius bench.shown
    bench.spec bench.cores bench.script bench.events bench.commit
    bench.ranges
    bench.tuned
    bench.record
    bench.names bench.text bench.values bench.known bench.fairness bench.alarms bench.plugins
    bench.registry
    bench.storage attacks.common
    bench.random
    bench.identity
    bench.device reports
    bench.data bench.encoders.common bench.tracking
    methods.common
    bench.distributed
    bench.training
    bench.options
    bench.protocols.common
    bench.evaluation
    bench.audit
    bench.engines bench.runs
    bench.gate bench.tuning
    bench.commands
    bench.cli
    bench.__main__
"""
LEVEL = {package: level for level, line in enumerate(FLOORS.strip().splitlines()) for package in line.split()}
BASES = {  # of plug-ins: the package whose floors they stand on
    "methods": "methods.common",
    "attacks": "attacks.common",
    "bench.encoders": "bench.encoders.common",
    "bench.datasets": "bench.data",
    "bench.protocols": "bench.protocols.common",
    "bench.trackers": "bench.tracking",
}
# What they load inside functions is not counted: plug-ins by their names, and what takes long to import.
LOADERS = ("bench.registry", "bench.plugins", "bench.commands", "bench.cli", "bench.runs.child_main", "bench")


def home(module):
    """The package of FLOORS or BASES that a module lies in; "" for bench itself, whose version all may know."""
    places = [name for name in (*LEVEL, *BASES) if module == name or module.startswith(name + ".")]
    return max(places, key=len, default="")


def counted(i):
    """Whether an import has to run downwards."""
    lazy = i.inside_function and any(i.source == loader or i.source.startswith(f"{loader}.") for loader in LOADERS[:-1])
    return i.target in MODULES and i.target != "bench" and i.source != "bench" and not (i.typing_only or lazy)


def test_imports_run_downwards():
    """A file imports its own package and those below, also inside functions."""
    wrong = []
    for i in filter(counted, imports()):
        above, below = home(i.source), home(i.target)
        floor = LEVEL[BASES.get(above, above)] + (above in BASES)
        within = below == above or (below in LEVEL and LEVEL[below] < floor)
        beside = above in LEVEL and below in LEVEL and LEVEL[above] == LEVEL[below] and {above, below} == ENGINE_ROOM
        if not (within or beside):
            wrong.append(f"{i.source} -> {i.target}")
    assert sorted(set(wrong)) == []


ENGINE_ROOM = {"bench.engines", "bench.runs"}  # a run is started by the other and makes use of it; no circle of files


def test_every_module_has_a_floor():
    assert [module for module in sorted(MODULES - {"bench"}) if not home(module)] == []


def test_only_the_registry_names_a_plug_in():
    named = {(home(i.source), i.target) for i in imports() if i.target in MODULES and home(i.target) in BASES}
    own = {(place, target) for place, target in named if place == home(target)}
    assert {place for place, _ in named - own} <= {"bench.registry"}


def test_the_parts_of_the_store_are_reached_through_it():
    """Records and checkpoints by a RunFolder; of the disk others know its error and how a derived file is written."""
    own = {f"bench.storage.{name}" for name in ("checkpoint", "disk", "files", "lock", "repair", "store")}
    own |= {"bench.engines.parcel", "bench.data.cache", "bench.data.decoders"}  # the store of decoded images
    assert {i.source for i in loads("bench.storage.checkpoint")} == {"bench.storage.store"}
    for name, file in NAMES.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {
            a.name
            for n in ast.walk(tree)
            if isinstance(n, ast.ImportFrom) and n.module == "bench.storage.disk"
            for a in n.names
        }
        if module_name(file) not in own:
            assert names <= {"DiskError", "cannot", "is_there", "put_aside", "write_bytes"}, name
            assert "DISK" not in {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}, name


def test_reports_have_no_tensor():
    assert [
        i for i in loads("torch") | loads("torchvision") | loads("safetensors") if i.source.startswith("reports")
    ] == []


def test_the_store_loads_torch_only_inside_the_functions_that_need_it():
    light = {f"bench.storage.{name}" for name in ("disk", "files", "lock", "repair", "signals", "store")}
    light |= {"bench.data.decoders", "bench.data.pictures"}
    heavy = [i for i in loads("torch") | loads("safetensors") | loads("bench.storage.checkpoint") if i.source in light]
    assert {i.source for i in heavy} == {"bench.storage.files", "bench.storage.store"}
    assert all(i.inside_function or i.typing_only for i in heavy)


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions count, too."""
    graph = {module: set() for module in MODULES}
    for i in filter(counted, imports()):
        graph[i.source].add(i.target)
    done = set()

    def walk(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for target in sorted(graph[module]):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    assert done == MODULES


# ---------------------------------------------------------------- what loads


def modules_after(statement):
    """Names in sys.modules after the statement, in a fresh process."""
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_line_and_the_reports_load_no_torch():
    heavy = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "pandas", "safetensors", "pyautoattack"}
    loaded = modules_after("import bench.cli, bench.storage.store, bench.registry, bench.runs.conduct")
    assert "bench.cli" in loaded
    assert loaded & heavy == set()
    loaded = modules_after("import reports.build, reports.rows, reports.leaderboard")
    assert "reports.build" in loaded
    assert "torch" not in loaded


# ---------------------------------------------------------------- one home for each thing

WRITES = {  # file: what it may do there
    "bench/runs/child_main.py": {"open"},  # the log of a child, which is appended to line by line
    "bench/tracking/tracking.py": {"open"},  # the same of a hook
    "bench/datasets/cifar10.py": {"open"},  # the download, which is checked before it is used
    "bench/storage/lock.py": {"open", "ftruncate", "pwrite"},  # who the owner is
    "bench/evaluation/torch_reader.py": {"save_file"},  # into a folder for one reading
    "reports/plots.py": {"savefig"},  # into memory
    "reports/build.py": {"to_csv"},  # into a string
}
WRITERS = {"write_text", "write_bytes", "savefig", "tofile", "to_csv", "to_json", "to_parquet", "to_excel", "save_file"}
MODULE_WRITERS = {
    "torch.save",
    "np.save",
    "np.savez",
    "json.dump",
    "pickle.dump",
    *(f"os.{name}" for name in ("open", "write", "pwrite", "pwritev", "ftruncate", "truncate", "fdopen", "replace")),
    "os.rename",
    "os.link",
    "os.symlink",
}
STORE = (
    "bench.storage.disk",
    "bench.storage.files",
    "bench.storage.store",
)  # whose functions may be called by their names


def writing_calls(tree):
    """Calls that may write a file: (name, line)."""
    from_store = {
        a.asname or a.name
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and n.module in STORE
        for a in n.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.rpartition(".")[2]
        if isinstance(node.func, ast.Name) and name in from_store:
            continue  # the store's own function
        modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        writes = any(
            isinstance(m, ast.Constant)
            and isinstance(m.value, str)
            and re.fullmatch(r"[rwaxbt+]*[wax+][rwaxbt+]*", m.value)
            for m in modes
        )
        if (name == "open" and writes) or name in WRITERS or called in MODULE_WRITERS:
            yield name, node.lineno


def test_only_the_disk_writes_files():
    calls = {name: {call for call, _ in writing_calls(trees()[name])} - WRITES.get(name, set()) for name in trees()}
    assert calls.pop("bench/storage/disk.py") == {"open", "write", "pwrite", "replace"}
    assert {name: called for name, called in calls.items() if called} == {}


def test_the_exceptions_of_writing_are_still_needed():
    assert {name: {call for call, _ in writing_calls(trees()[name])} for name in WRITES} == WRITES


def test_an_assert_tells_the_type_checker_what_is_known_and_guards_nothing():
    """``python -O`` leaves them out: what a number rests on, or others give us, is an exception of its own."""
    said = {(name, ast.unparse(node)) for name, tree in trees().items() for node in ast.walk(tree) if is_assert(node)}
    known = r"assert [\w.]+ is not None|assert isinstance\([\w., ]+\)"
    assert [(name, text) for name, text in said if not re.fullmatch(known, text)] == []


def is_assert(node):
    return isinstance(node, ast.Assert)


def test_only_the_device_package_decides_what_the_device_does():
    wrong = []
    for name, tree in trees().items():
        if not name.startswith("bench/device/"):
            wrong += [f"{name}, line {node.lineno}" for node in ast.walk(tree) if decides(node)]
    assert wrong == []


def decides(node):
    """Whether a node names a memory format, a precision, a compilation or a GPU; autocast may be switched off."""
    if isinstance(node, ast.Attribute):
        return node.attr == "channels_last"
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    called, enabled = node.func.attr, {k.arg: ast.unparse(k.value) for k in node.keywords}.get("enabled")
    switched_on = called == "autocast" and enabled != "False"
    return called in ("cuda", "half", "bfloat16") or ast.unparse(node.func) == "torch.compile" or switched_on


def test_a_file_can_be_read_in_one_sitting():
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in NAMES.items()}
    assert {name: length for name, length in lengths.items() if length >= 400} == {}
    unsaid = [name for name, tree in trees().items() if not ast.get_docstring(tree)]
    assert [name for name in unsaid if not name.endswith("common/__init__.py")] == []  # a file opens with what it is


def test_a_method_fits_on_a_screen_and_an_attack_in_three():
    """Folders are registries: the variants stay short because they inherit."""
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in NAMES.items()}
    assert max(n for name, n in lengths.items() if re.fullmatch(r"methods/(?!_)\w+\.py", name)) <= 80
    assert max(n for name, n in lengths.items() if re.fullmatch(r"attacks/(?!_)\w+\.py", name)) <= 160
