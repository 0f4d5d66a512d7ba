"""One spelling for each address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.addresses import canonical_address


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:a00:1", "10.0.0.1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("2001:db8::0001", "2001:db8::1"),
    ],
)
def test_other_spellings_are_the_same_address(text: str, canonical: str) -> None:
    assert canonical_address(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.0.0", "010.0.0.1", "10.0.0.1 ", " 10.0.0.1", "10.0.0.1\n", "10.0.0.1:80", "10.0.0.256", "1" * 5000),
        *("[::1]", "fe80::1%eth0", "0x0a000001", "167772161", "localhost"),
    ],
)
def test_what_is_no_address_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(ValueError) as refusal:
        canonical_address(text)
    assert len(str(refusal.value)) < 120
    assert "\n" not in str(refusal.value).replace(text, "")


@given(st.ip_addresses())
def test_canonical_is_a_fixed_point(address: object) -> None:
    canonical = canonical_address(str(address))
    assert canonical_address(canonical) == canonical
