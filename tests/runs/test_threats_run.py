"""One run with every threat, through the command line: cells, tables of their own, and the numbers once more."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.cli import main
from bench.storage.store import load_records

pytestmark = pytest.mark.ci  # a whole process

SMALL = ["--image-size", "32", "--encoder", "resnet8", "--methods", "simclr", "--set", "simclr.batch=16"]
SMALL += ["--budget", "2up", "--eval", "quick", "--protocols", "linear", "--audit", "off", "--device", "cpu"]
SMALL += ["--threads", "1", "--attack-images", "pgd=4,band=4,curve=2"]


def bench(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main([*map(str, arguments)])
    return leaving.value.code


@pytest.mark.skipif(importlib.util.find_spec("imagecorruptions") is None, reason="needs imagecorruptions, an extra")
def test_every_threat_in_one_run(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for label in range(4):
            (tmp_path / "data" / split / f"c{label}").mkdir(parents=True)
            for n in range(count):
                image = np.clip(0.2 * label + 0.1 * rng.standard_normal((32, 32, 3)), 0, 1)
                Image.fromarray((255 * image).astype(np.uint8)).save(tmp_path / f"data/{split}/c{label}/{n}.png")
    out, data = tmp_path / "out", f"folder:{tmp_path / 'data'}"
    threats = ["--attacks", "pgd", "--threats", "linf:8/255,l2:0.5,corruptions"]
    assert bench("run", "--data", data, *SMALL, *threats, "--out", out) == 0
    (record,) = load_records(out)
    cells = {(result.attack, result.norm, result.eps): result for result in record.results}
    assert cells["pgd_l2", "l2", 0.5].total == 4
    assert cells["corruptions", "linf", 0.0].total == 75 * 12  # the whole test set, which has fewer than 100 images
    assert len(pd.read_csv(out / "corruptions.csv")) == 75
    assert set(pd.read_csv(out / "results.csv")["attack"]) == {"none", "pgd", "pgd_only", "pgd_l2"}
    assert "Accuracy under corruptions (regenerated)." in (out / "report.html").read_text()
    capsys.readouterr()
    assert bench("verify", out) == 0
    assert bench("run", "--data", data, *SMALL, "--attacks", "pgd", "--threats", "l2:56", "--out", tmp_path / "no") == 2
    assert "expected radii in l2 of at most 55.43" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
