"""`bench list`: every plug-in once, methods under the groups that --methods takes."""

import pytest

from bench import registry
from bench.commands.listing import KINDS, items, lines
from bench.spec import UsageError
from methods import GROUPS


@pytest.mark.parametrize("kind", [*KINDS, "suites"])
def test_everything_is_listed_once_with_a_line_about_it(kind):
    listed = items(kind)
    names = [item["name"] for item in listed]
    assert len(names) == len(set(names)) > 0
    assert kind == "suites" or sorted(names) == registry.names(KINDS[kind])
    assert all(item["description"] for item in listed)
    assert all(any(line.startswith(name) for line in lines(listed)) for name in names)


def test_methods_stand_under_their_groups():
    said = lines(items("methods"))
    heads = [line.removesuffix(":") for line in said if line.endswith(":") and " " not in line]
    assert heads == list(GROUPS)
    begin, end = said.index("field:"), said.index("supervised:")
    assert {line.split()[0] for line in said[begin + 1 : end] if line} == set(GROUPS["field"])


def test_a_kind_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(UsageError, match=r"unknown list 'method'; did you mean 'methods'\?"):
        items("method")
