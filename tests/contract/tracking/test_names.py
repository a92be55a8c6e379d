"""Every name reaches MLflow under a name that it accepts and that no other has."""

import pytest

from stages.contract.tracking.names import Names, allowed_name, allowed_text

ODD = [
    "https://example.org/docs", "https:/example.org/docs", "a//b", "a/./b", "a/b/", "/a/b", "a/../b", "../a", "..a",
    ".", "..", "", "/", "C++", "C#+", "C--", "x" * 251, "x" * 260, "a\\b", "a\nb", "a\x00b", "a\n", "tab\t",
    "\udce9", "\U0001f600", "\u00e9", "e\u0301", "Loss", "loss", "LOSS", "\uff4coss", "stra\u00dfe", "STRASSE",
    "plain.name-1 a:b/c",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_mlflow_accepts_the_name(name):
    from mlflow.utils.validation import _validate_metric

    _validate_metric(allowed_name(name), 1.0, 0, 0)
    _validate_metric(Names({}).allowed(name), 1.0, 0, 0)


def test_no_two_names_become_one_for_any_database():
    names = Names({})
    accepted = [names.allowed(name) for name in ODD]
    assert len({name.casefold() for name in accepted}) == len(ODD)
    assert [Names(names.taken).allowed(name) for name in ODD] == accepted, "also by the process that goes on"


def test_a_good_name_stays_and_others_stay_readable():
    assert allowed_name("plain.name-1 a:b/c") == "plain.name-1 a:b/c"
    assert allowed_name("share.https://example.org/docs").startswith("share.https:/example.org/docs-")


def test_a_text_is_cut_and_can_be_stored():
    assert allowed_text("a\0b\udce9" + "x" * 10, 5) == "ab?xx"
