"""A name tells apart what it stands for: rows, radii, and the folder of a run."""

import pytest
from registry_fixtures import METHOD

from bench.evaluation.evaluate import plan_cells
from bench.names import check_apart, check_path, eps_name
from bench.options.options import Options, Row, chosen_rows
from bench.options.resolve import resolve
from bench.spec import EvalSpec, UsageError

SMALL = {"data": "digits", "budget": "1up", "train_images": 128, "test_images": 16, "attacks": "pgd", "device": "cpu"}


@pytest.fixture
def two(tmp_path):
    """The paths of two files of one name."""
    for folder in ("B1", "B2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(METHOD)
    return f"{tmp_path}/B1/mine.py", f"{tmp_path}/B2/mine.py"


def test_two_files_of_one_name_are_refused_with_both_paths(two):
    with pytest.raises(UsageError, match=f"got mine for {two[0]} and for {two[1]}; name them apart") as refused:
        chosen_rows(Options(methods=",".join(two)))
    advice = str(refused.value).rpartition("--methods ")[2]
    assert [row.label for row in chosen_rows(Options(methods=advice))] == ["mine1", "mine2"]
    with pytest.raises(UsageError, match=r"got mine for .*; name them apart: give one a name = of its own"):
        chosen_rows(Options(rows=[Row(method=path, budget="1up") for path in two]))


def test_a_name_of_its_own_is_that_of_the_row_and_of_its_settings(two):
    methods, settings = f"a={two[0]},b={two[1]}", {"a": {"lr": "0.1"}, "b": {"lr": "0.2"}}
    runs = resolve(Options(methods=methods, settings=settings, **SMALL))[0]
    assert [(run.name, run.method_path, run.settings["lr"]) for run in runs] == [
        ("a-s0", two[0], "0.1"),
        ("b-s0", two[1], "0.2"),
    ]
    with pytest.raises(UsageError, match="--set mine means the files of a and b; name each of them"):
        resolve(Options(methods=methods, settings={"mine": {"lr": "0.1"}}, **SMALL))


def test_one_method_under_two_names():
    rows = chosen_rows(Options(methods="x=simclr,y=simclr,simclr"))
    assert [(row.label, row.method) for row in rows] == [("x", "simclr"), ("y", "simclr"), ("simclr", "simclr")]
    with pytest.raises(UsageError, match="unknown method 'simclrr'"):
        chosen_rows(Options(methods="x=simclrr"))


@pytest.mark.parametrize("radii", [(8 / 255, 0.031373), (0.1, 0.1000004), (1e-7,)])
def test_radii_that_would_share_a_file_are_refused(radii):
    with pytest.raises(UsageError, match="expected eps that differ from each other and 0 by 1e-6, got"):
        check_apart(radii)
    check_apart((8 / 255, 0.03138, 0.1))


@pytest.mark.parametrize("asked", [0.015686, 0.05 + 3e-7, 0.2])
def test_a_point_of_the_curve_never_shares_a_file_with_an_eps_that_was_asked_for(asked):
    for main in (8 / 255, 0.1, 0.9, 2e-6):
        spec = EvalSpec(eps=(asked, main), main_eps=main, attacks=("pgd",), protocols=("linear",))
        cells = [cell for cell in plan_cells(spec, 8) if cell.attack == "pgd"]
        assert len({eps_name(cell.eps) for cell in cells}) == len(cells)
        assert {cell.eps for cell in cells if not cell.curve} == {asked, main}


@pytest.mark.parametrize(("name", "what"), [("x" * 300, "name"), ("ä" * 140, "name"), ("d/" * 2000, "path")])
def test_a_folder_that_the_file_system_cannot_name_is_refused_in_a_short_line(tmp_path, name, what):
    with pytest.raises(
        UsageError, match=rf"the {what} .* is too long: \d+ bytes of at most \d+; choose a shorter"
    ) as e:
        check_path(tmp_path / name)
    assert len(str(e.value)) < 150
    check_path(tmp_path / ("x" * 240))
