"""A run folder as frames: those of the CSV files, with types, and nothing is written."""

import io

import pandas as pd
import pytest
from report_fixtures import manifest, records, write
from store_fixtures import spoil

import bench
from bench.spec import UsageError
from bench.storage.files import Damaged
from bench.storage.store import MANIFEST, Point, RunFolder, Snapshot
from reports import build as builder
from reports.build import build, csv
from tests.test_architecture import modules_after

TABLES = ("results", "leaderboard", "claims", "curves")
POINT = Point(
    snapshot=Snapshot(percent=50, progress=0.5, updates=3, train_seconds=1.5),
    passes_per_image=2.0,
    clean=(3, 4),
    robust=(1, 4),
    eps=0.1,
    seconds=1.0,
)


@pytest.fixture
def folder(tmp_path):
    asked = manifest(("simclr_adv", "cf_amc_ssl"))
    place = write(tmp_path / "run", asked, records(asked, diverged=()))
    RunFolder(place, asked.runs[0]).save_curve([POINT])
    return place


def test_the_frames_are_the_tables_that_a_report_writes(folder, monkeypatch):
    monkeypatch.setattr(builder.plots, "wanted", lambda *tables: [])  # tables alone
    for kind in (builder.pdf, builder.html):
        monkeypatch.setattr(kind, "render", lambda *what: b"")
    run = bench.load(str(folder))
    frames = {name: getattr(run, name) for name in TABLES}
    assert build(folder) == []
    for name, frame in frames.items():
        assert len(frame) > 0, name
        assert csv(frame) == (folder / f"{name}.csv").read_text(encoding="utf-8"), name
    assert run.manifest.main_eps == 0.1
    assert run.folder == folder
    assert set(run.results["method"]) == {"simclr_adv", "cf_amc_ssl"}
    assert run.results["correct"].dtype == "Int64"
    assert run.curves[["percent", "clean", "robust"]].to_numpy().tolist() == [[50, 0.75, 0.25]]
    best = run.leaderboard.query("protocol == 'linear' and rank_lo == 1")
    assert best["method"].tolist() == ["cf_amc_ssl"]
    again = pd.read_csv(io.StringIO(csv(run.results)))
    assert again["accuracy"].tolist() == pytest.approx(run.results["accuracy"].tolist(), nan_ok=True)


def test_it_reads_only_and_keeps_what_it_read(folder):
    def stored():
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}

    before, run = stored(), bench.load(folder)
    tables = [getattr(run, name) for name in TABLES]
    assert stored() == before
    assert all(getattr(run, name) is table for name, table in zip(TABLES, tables, strict=True))


def test_a_run_without_curves_has_an_empty_table_of_them(tmp_path):
    asked = manifest(("simclr_adv",))
    run = bench.load(write(tmp_path, asked, records(asked, diverged=())))
    assert run.curves.empty
    assert "percent" in run.curves.columns
    assert run.claims.empty


@pytest.mark.parametrize("given", ["nowhere", "", "empty"])
def test_a_folder_that_holds_no_run(tmp_path, given):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"expected the folder of a run, got .* has no manifest"):
        bench.load(tmp_path / given)


@pytest.mark.parametrize("given", [None, 3, ["a"]])
def test_what_is_no_path(given):
    with pytest.raises(UsageError, match="expected the folder of a run, got "):
        bench.load(given)


@pytest.mark.parametrize("file", [MANIFEST, "runs/simclr_adv-s0/train.json", "runs/simclr_adv-s0/curve.json"])
def test_a_damaged_file_is_named(folder, file):
    spoil(folder / file)
    with pytest.raises(Damaged) as error:
        bench.load(folder)
    assert str(folder / file) in str(error.value)


def test_importing_bench_loads_neither_pandas_nor_torch():
    loaded = modules_after("import bench")
    assert loaded & {"torch", "pandas", "numpy", "pydantic", "reports", "bench.record", "bench.spec"} == set()
    loaded = modules_after("import bench, tempfile\ntry: bench.load(tempfile.mkdtemp())\nexcept ValueError: pass")
    assert "pandas" in loaded
    assert "torch" not in loaded
