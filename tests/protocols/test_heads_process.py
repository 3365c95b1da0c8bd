"""The heads of the field through the command line: killed in a head's training, resumed, verified, shown."""

import csv
import io
import re

import pytest
from test_own_protocol import TINY, finished, killed, stored

import bench

HEADS = "slf,linear_head=alf,all_of_it=aff,knn,mixed=released_mixed"
FEW = (
    "linear_head.epochs=2",
    "linear_head.learning_rates=1,10",
    "all_of_it.epochs=2",
    "mixed.clean=1",
    "mixed.robust=1",
)
FIT = {"linear": False, "linear_head": True, "all_of_it": True, "knn": False, "mixed": True}


@pytest.mark.ci  # a minute: four heads in three commands
def test_every_head_is_trained_killed_resumed_audited_verified_and_shown(tmp_path):
    def asked(out, *more):
        few = [word for setting in (*FEW, "mixed.clean_again=0") for word in ("--set", setting)]
        return ["run", *TINY, "--protocols", HEADS, *few, "--out", str(out), *more]

    whole, out = tmp_path / "whole", tmp_path / "out"
    finished(*asked(whole, "--attacks", "pgd", "--audit", "off"))
    of_run = out / "runs" / "simclr-s0"
    for protocol in ("linear_head", "all_of_it"):
        killed((of_run / "heads" / protocol / "000002" / "MANIFEST.json").is_file, *asked(out))
        assert not (of_run / "probes" / f"{protocol}.json").exists()
    finished(*asked(out))
    assert not [*(of_run / "heads").glob("*/*")]  # what is finished needs no draft
    for protocol, trained in FIT.items():
        head, expected = (
            stored(folder / "runs" / "simclr-s0" / "probes" / f"{protocol}.json") for folder in (out, whole)
        )
        assert head["sha256"] == expected["sha256"]
        assert head["passes"] == expected["passes"] >= 64
        assert (head["passes"] > 10 * 64) == trained
    assert re.match(r"0 differences in 13 recomputed numbers", finished("verify", str(out)))
    lines = list(csv.DictReader(io.StringIO((out / "leaderboard.csv").read_text())))
    assert {line["protocol"] for line in lines} == FIT.keys() - {"mixed"}
    assert all(line["audit"] in ("PASS", "FLAG", "FAIL") and float(line["head_passes"]) > 0 for line in lines)
    rows = bench.load(out).results
    of_mixed = rows[rows["protocol"] == "mixed"]
    assert set(of_mixed["attack"]) == {"none", "pgd", "autoattack"}
    page = (out / "report.html").read_text(encoding="utf-8")
    for title in ("SLF (linear probe)", "ALF (adversarial linear head)", "AFF (adversarial fine-tuning)", "kNN"):
        assert title in page
