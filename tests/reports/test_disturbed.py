"""Disturbed runs in the tables: against themselves, and against the median of the machine's other runs."""

import pandas as pd
import pytest
from report_fixtures import manifest, records

from reports import disturbed as module
from reports.disturbed import clock_probe, hardware, machine_medians
from reports.leaderboard import leaderboard
from reports.rows import rows


def probed(*pairs, **environment):
    """Finished records, one for each pair of readings; None: no probe."""
    asked = manifest(methods=("cf_amc_ssl",), seeds=len(pairs))
    found = records(asked)
    machine = found[0].environment.model_copy(update=environment)
    found = [
        record.model_copy(
            update={"train": record.train.model_copy(update={"calibration": pair}), "environment": machine}
        )
        for record, pair in zip(found, pairs, strict=True)
    ]
    return asked, found


def verdicts(found):
    return [clock_probe(record, machine_medians(found))["disturbed"] for record in found]


def machine_median(record, found):
    return machine_medians(found).get(hardware(record))


def test_two_runs_make_no_median_and_three_do():
    _, two = probed((1.0, 1.0), (1.2, 1.2))
    assert machine_median(two[0], two) is None
    assert verdicts(two) == [False, False]
    _, three = probed((1.0, 1.0), (1.2, 1.2), (1.0, 1.01))
    assert machine_median(three[0], three) == pytest.approx(1.005)
    assert verdicts(three) == [False, True, False]  # a later run tells that the second was slow all the time


def test_a_run_without_a_probe_counts_for_no_median():
    _, found = probed((1.0, 1.0), (1.2, 1.2), None)
    assert machine_median(found[0], found) is None
    assert clock_probe(found[2], machine_medians(found)) == {"disturbed": None, "calibration_ratio": None}


@pytest.mark.parametrize("change", [{"threads": 1}, {"device_name": "another"}, {"precision": "bf16"}, {"cores": 64}])
def test_other_hardware_has_a_median_of_its_own(change):
    _, ours = probed((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    _, theirs = probed((2.0, 2.0), (2.0, 2.0), (2.0, 2.0), **change)
    assert machine_median(ours[0], ours + theirs) == 1.0
    assert machine_median(theirs[0], ours + theirs) == 2.0
    assert verdicts(ours + theirs) == [False] * 6


def test_a_run_that_did_not_finish_counts_for_no_median():
    _, found = probed((1.0, 1.0), (1.0, 1.0), (9.0, 9.0))
    found[2] = found[2].model_copy(update={"train": found[2].train.model_copy(update={"status": "diverged"})})
    assert machine_median(found[0], found) is None


def test_the_tables_mark_disturbed_runs_and_rank_them_all_the_same():
    asked, found = probed((1.0, 1.0), (1.0, 1.12), (1.0, 1.01))
    table = rows(asked, found)
    by_seed = table.drop_duplicates("seed").set_index("seed")
    assert by_seed["disturbed"].tolist() == [False, True, False]
    assert by_seed["calibration_ratio"].tolist() == pytest.approx([1.0, 1.12, 1.01])
    board = leaderboard(table, found, asked.main_eps)
    assert board["disturbed"].tolist() == [1, 1]  # a line for each protocol
    asked, quiet = probed((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    undisturbed = leaderboard(rows(asked, quiet), quiet, asked.main_eps)
    assert undisturbed["disturbed"].tolist() == [0, 0]
    pd.testing.assert_frame_equal(board.drop(columns="disturbed"), undisturbed.drop(columns="disturbed"))


def test_runs_in_updates_leave_gaps():
    asked, found = probed(None, None)
    table = rows(asked, found)
    assert table["disturbed"].isna().all()
    assert table["calibration_ratio"].isna().all()
    assert leaderboard(table, found, asked.main_eps)["disturbed"].isna().all()
    assert pd.api.types.is_bool_dtype(table["disturbed"])


def test_a_foreign_model_has_no_budget():
    asked, found = probed(None)
    spec = found[0].spec.model_copy(update={"settings": {"weights_sha256": "0" * 64}})
    theirs = found[0].model_copy(update={"spec": spec})
    assert rows(asked, found)["budget"].unique().tolist() == ["1m"]
    assert rows(asked, [theirs])["budget"].isna().all()


def test_the_median_of_a_machine_is_found_once_however_many_runs_there_are(monkeypatch):
    looked = []
    monkeypatch.setattr(module, "hardware", lambda record: looked.append(record))
    asked, found = probed(*[(1.0, 1.0)] * 20)
    rows(asked, found)
    assert len(looked) == 2 * len(found)
