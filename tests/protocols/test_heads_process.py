"""The heads of the field through the command line: killed in a head's training, resumed, verified, shown."""

import csv
import io
import re

import pytest
from test_own_protocol import TINY, finished, killed, stored

import bench

HEADS = "slf,alf,aff,knn,mixed=released_mixed"
FIT = {"linear": False, "adversarial_linear": True, "adversarial_full": True, "knn": False, "mixed": True}


@pytest.mark.ci
def test_every_head_is_trained_killed_resumed_audited_verified_and_shown(tmp_path):
    def asked(out):
        few = ["--set", "mixed.clean=1", "--set", "mixed.robust=1", "--set", "mixed.clean_again=0"]
        return ["run", *TINY, "--protocols", HEADS, *few, "--out", str(out)]

    whole, out = tmp_path / "whole", tmp_path / "out"
    finished(*asked(whole))
    of_run = out / "runs" / "simclr-s0"
    for protocol in ("adversarial_linear", "adversarial_full"):
        killed((of_run / "heads" / protocol / "000002" / "MANIFEST.json").is_file, *asked(out))
        assert not (of_run / "probes" / f"{protocol}.json").exists()
    finished(*asked(out))
    assert not [*(of_run / "heads").glob("*/*")]  # what is finished needs no draft
    for protocol, trained in FIT.items():
        head, expected = (
            stored(folder / "runs" / "simclr-s0" / "probes" / f"{protocol}.json") for folder in (out, whole)
        )
        assert head["sha256"] == expected["sha256"]
        assert head["passes"] == expected["passes"] > 64
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
