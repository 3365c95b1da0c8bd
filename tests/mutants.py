"""The mutation score: of small faults sown into the code behind the published numbers, or into the store, how many
the tests notice.

    pip install mutmut==3.8.1
    python tests/mutants.py --sample 300 --seed 0
    python tests/mutants.py --code store --sample 200 --seed 0

Works on a copy, so the working tree stays as it is. Prints the counts of each file, the score, and the change of every
mutant that survived. mutmut sows faults inside functions; it leaves decorated ones and constants of a module alone.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("bench", "attacks", "methods", "reports", "tests")
STORE = ("disk", "files", "checkpoint", "store", "repair", "lock")
CODE = {  # name -> (files, the tests that were written for them)
    "numbers": (
        (
            "bench/audit/audit.py",
            "bench/evaluation/evaluate.py",
            "reports/stats.py",
            "attacks/*.py",
            "attacks/common/*.py",
        ),
        ("stats", "claims", "attack*", "evaluate*", "audit*"),
    ),
    "store": (tuple(f"bench/storage/{name}.py" for name in STORE), (*STORE, "examples", "curve")),
}
NOTICED = ("killed", "timeout")


def prepare(copy: Path, targets: tuple[str, ...], written: tuple[str, ...]) -> None:
    """Copies the sources, writes mutmut's settings beside them, and makes the copy the working directory."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    tests = sorted({file for name in written for file in copy.glob(f"tests/**/test_{name}.py")})
    settings = {
        "source_paths": ["bench", "attacks", "reports"],
        "only_mutate": targets,
        "also_copy": ["methods"],
        "pytest_add_cli_args_test_selection": [file.relative_to(copy) for file in tests],
        "pytest_add_cli_args": ["--hypothesis-seed=0", "-p no:xdist", "-p no:cacheprovider"],
    }
    lines = [f"{key} =\n  " + "\n  ".join(map(str, values)) for key, values in settings.items()]
    # generous, because a timeout counts as noticed: twice the tests' own time and a minute
    lines += ["timeout_multiplier = 2.0", "timeout_constant = 30.0"]
    (copy / "setup.cfg").write_text("\n".join(["[mutmut]", *lines, ""]), encoding="utf-8")
    os.chdir(copy)


def all_mutants(targets: tuple[str, ...]) -> dict[str, list[str]]:
    """file -> names of its mutants, for every file that has any."""
    from mutmut.mutation.file_mutation import mutate_file_contents  # reads setup.cfg in the working directory
    from mutmut.utils.format_utils import get_mutant_name

    found = {}
    for file in sorted(file for pattern in targets for file in Path().glob(pattern)):
        names = mutate_file_contents(str(file), file.read_text(encoding="utf-8")).mutant_names
        found[str(file)] = [get_mutant_name(file, name) for name in names]
    return {file: names for file, names in found.items() if names}


def drawn(mutants: dict[str, list[str]], count: int, seed: int) -> dict[str, list[str]]:
    """About ``count`` of them, from each file in proportion, in the order of the hash of seed and name.

    So a change in one file leaves the draw from the others as it was.
    """

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    total = sum(map(len, mutants.values()))
    return {file: sorted(names, key=place)[: round(count * len(names) / total)] for file, names in mutants.items()}


def verdicts(file: str) -> dict[str, str]:
    """name -> "killed", "timeout", "survived", "no tests" and what else mutmut may say, of all mutants of a file."""
    from mutmut.stats import status_by_exit_code

    codes = json.loads(Path("mutants", f"{file}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
    return {name: status_by_exit_code[code] for name, code in codes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="The mutation score of the code behind the published numbers.")
    parser.add_argument("--code", choices=CODE, default="numbers", help="what faults are sown into")
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw over all files")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="of that draw, only those of files whose path contains this")
    options = parser.parse_args()
    mutmut = shutil.which("mutmut", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mutmut is None:
        sys.exit("expected mutmut; install it with: pip install mutmut==3.8.1")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        targets, written = CODE[options.code]
        prepare(Path(folder), targets, written)
        mutants = all_mutants(targets)
        sample = {f: names for f, names in drawn(mutants, options.sample, options.seed).items() if options.only in f}
        names = [name for each in sample.values() for name in each]
        subprocess.run([mutmut, "run", "--max-children", "1", *names], check=True, stdout=sys.stderr)
        survivors = []
        for file, chosen in sample.items():
            found = {name: verdict for name, verdict in verdicts(file).items() if name in chosen}
            counts = ", ".join(f"{number} {verdict}" for verdict, number in sorted(Counter(found.values()).items()))
            print(f"{file}: {len(chosen)} of {len(mutants[file])} drawn: {counts}")
            survivors += [name for name, verdict in found.items() if verdict not in NOTICED]
        for name in survivors:
            print(subprocess.run([mutmut, "show", name], check=True, capture_output=True, text=True).stdout)
        noticed = len(names) - len(survivors)
        print(f"mutation score {noticed / len(names):.1%}: {noticed} of {len(names)} noticed, seed {options.seed}")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
