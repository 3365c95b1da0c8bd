# Two targets do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/digits
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# uv installs in a quarter of pip's time (docs/measurements.md). It does not read pip's settings, so where it fails, behind
# a mirror for example, pip does it.
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: run test example chaos cluster mutants perf gpu lint docs lock clean

run: $(VENV)/.installed  ## every method on the embedded digits, then the report (bench/suites/quick.toml)
	$(BIN)/bench run --suite quick --out $(OUT)

# Also where the environment forbids it, bytecode is kept: each of the suite's hundreds of processes would compile it all.
test: $(VENV)/.installed-test  ## the test suite
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

example: $(VENV)/.installed  ## the report in docs/example: about two hours on 2 cores, goes on where it stopped
	$(BIN)/bench run --suite example --out runs/example --yes
	mkdir -p docs/example
	cp runs/example/report.html runs/example/report.pdf runs/example/*.csv runs/example/figures/clean_vs_robust.svg docs/example/

chaos: $(VENV)/.installed-test  ## faults of disk, power and processes in full numbers (docs/measurements.md)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --chaos -m chaos tests/chaos -n auto

cluster: $(VENV)/.installed-test  ## runs on a Ray cluster and as jobs, both on this machine: workers killed, nodes lost
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --cluster -m cluster tests/cluster -n 2 --dist loadfile

mutants: $(VENV)/.installed-test  ## the mutation score, about 30 minutes on one core: make mutants SEED=0
	$(PIP) mutmut==3.8.1
	$(BIN)/python tests/mutants.py --seed $(or $(SEED),0)

gpu: $(VENV)/.installed-test  ## every figure that needs a GPU: make gpu DATA=parquet:DIR
	PYTHON=$(BIN)/python STAGES="$(STAGES)" tests/gpu.sh

perf: $(VENV)/.installed-test  ## each training step beside its plain textbook twin: make perf PERF="--quick --json"
	$(BIN)/python -m tests.perf $(PERF)

lint: $(VENV)/.installed-test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Not --quiet, with which --strict counts no warning. The theme's notice, that it is kept until May 2027 and what follows
# it, is not for every build.
docs: $(VENV)/.installed-docs  ## the documentation as a site, in site/; it fails on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: | $(BIN)/python  ## requirements.lock once more: the versions of constraints.txt, with the hashes of their files
	$(PIP) uv
	$(BIN)/uv pip compile pyproject.toml --extra parquet --extra test --constraint constraints.txt --universal \
		--python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --quiet \
		--output-file requirements.lock

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bench needs Python 3.11 or newer, and $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) uv && $(INSTALL) --editable '.[parquet]' || $(PIP) --editable '.[parquet]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) uv && $(INSTALL) --editable '.[parquet,test]' || $(PIP) --editable '.[parquet,test]'
	-$(PIP) --no-deps adv-lib==0.2.8 'tqdm>=4.65'  # FMN; its visdom, which FMN does not use, cannot be built any more
	@touch $@ $(VENV)/.installed

# Without the project itself: its sources are read, so the site needs no torch. pip knows groups since 25.1.
$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) uv && $(INSTALL) --group docs || { $(PIP) --upgrade pip && $(PIP) --group docs; }
	@touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .mypy_cache .ruff_cache
