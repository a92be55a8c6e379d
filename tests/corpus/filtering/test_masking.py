import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.filtering.masking import REPLACEMENTS, mask

EMAIL, IPV4, PHONE = (REPLACEMENTS[kind] for kind in ("email", "ipv4", "phone"))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ada.l+x@mail.company.co.uk.", f"Write to {EMAIL}."),
        ("<a@b.org>,c_d@e-f.de", f"<{EMAIL}>,{EMAIL}"),
        ("user@localhost, @decorator, a @ b.c, x@y.", "user@localhost, @decorator, a @ b.c, x@y."),
        ("ping 8.8.8.8, then 1.1.1.1:53", f"ping {IPV4}, then {IPV4}:53"),
        ("127.0.0.1 10.1.2.3 192.168.0.1 999.1.1.1", "127.0.0.1 10.1.2.3 192.168.0.1 999.1.1.1"),
        ("version 1.2.3.4.5 and v8.8.8.8", "version 1.2.3.4.5 and v8.8.8.8"),
        ("call (415) 555-2671 or +1 415.555.2671!", f"call {PHONE} or {PHONE}!"),
        ("1914-1918, 2024-05-17, 123-456-78901, x415-555-2671", "1914-1918, 2024-05-17, 123-456-78901, x415-555-2671"),
    ],
)
def test_what_is_masked_and_what_is_not(text, masked):
    found, counts = mask(text, REPLACEMENTS)
    assert found == masked
    assert sum(counts.values()) == sum(masked.count(value) for value in REPLACEMENTS.values())


def test_only_what_is_asked_for():
    assert mask("a@b.org 8.8.8.8", ["ipv4"]) == (f"a@b.org {IPV4}", {"ipv4": 1})
    assert mask("a@b.org", []) == ("a@b.org", {})


bits = st.sampled_from(
    ["a", "b.org", "@", ".", "-", " ", "8.8.8.8", "415", "555", "2671", "(", ")", "+1 ", EMAIL, PHONE]
)


@given(st.lists(bits, max_size=20).map("".join))
def test_masked_text_has_nothing_left_to_mask(text):
    masked, _ = mask(text, REPLACEMENTS)
    assert mask(masked, REPLACEMENTS) == (masked, {})
