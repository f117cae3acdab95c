"""How many cases of a test are in the core, and in .ci/run, where `@pytest.mark.few` says so (`conftest.py`)."""

from collections import Counter
from types import SimpleNamespace

import pytest

from tests.conftest import few

CASES = [f"test_it[{i}]" for i in range(30)]


class Item:
    """What `few` looks at in a test item."""

    def __init__(self, name, **marks):
        self.name, self.nodeid, self.marks = name, f"tests/test_file.py::{name}", marks
        self.callspec = SimpleNamespace(params={})

    def get_closest_marker(self, name):
        return self.marks.get(name)

    def add_marker(self, name):
        self.marks[name] = getattr(pytest.mark, name).mark


def items(*numbers, **marks):
    return [Item(name, few=pytest.mark.few(*numbers).mark, **marks) for name in CASES]


def counted(of_test):
    few(of_test)
    return Counter(tuple(sorted(item.marks.keys() & {"slow", "exhaustive"})) for item in of_test)


def test_so_many_are_kept():
    assert counted(items(4)) == {(): 4, ("slow",): 26}
    assert counted(items(4, 6)) == {(): 4, ("slow",): 6, ("exhaustive", "slow"): 20}
    assert counted(items(0, 6, slow=True)) == {("slow",): 6, ("exhaustive", "slow"): 24}
    assert counted(items(4, fast=True)) == {(): 30}
    assert counted([Item(name) for name in CASES]) == {(): 30}


def test_which_are_kept_hangs_on_names_alone():
    forth, back = items(4, 6), items(4, 6)[::-1]
    few(forth)
    few(back)
    kept = [{item.name for item in of_test if "slow" not in item.marks} for of_test in (forth, back)]
    assert kept[0] == kept[1] != set(CASES[:4])


def test_in_ci_every_value_has_a_case_before_one_has_two():
    """Six of 30 cases have all six letters and all five lists, which have no hash."""
    lists = [[i] for i in range(5)]
    of_test = items(1, 5)
    for i, item in enumerate(of_test):
        item.callspec.params = {"letter": "abcdef"[i % 6], "values": lists[i % 5]}
    few(of_test)
    run = [item.callspec.params for item in of_test if "exhaustive" not in item.marks]
    assert len(run) == 6
    assert {params["letter"] for params in run} == set("abcdef")
    assert {params["values"][0] for params in run} == set(range(5))
