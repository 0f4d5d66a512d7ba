"""Which proxy a URL is asked through, as Go's programs decide from the same environment."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiam.errors import UserError
from kiam.proxies import bypassed, proxy_for

PROXY = "http://proxy.example.com:3128"


def proxied(url: str, no_proxy: str) -> bool:
    found = proxy_for(url, {"HTTPS_PROXY": PROXY, "HTTP_PROXY": PROXY, "NO_PROXY": no_proxy})
    assert found in (None, PROXY)
    return found is not None


@pytest.mark.parametrize(
    ("no_proxy", "straight", "through"),
    [
        ("*", ["https://example.com", "http://192.0.2.1"], []),
        ("example.com", ["https://example.com", "https://a.b.EXAMPLE.com"], ["https://notexample.com", "https://com"]),
        (".example.com", ["https://a.example.com"], ["https://example.com"]),
        ("*.example.com", ["https://a.example.com"], ["https://example.com"]),
        ("example.com:8443", ["https://example.com:8443"], ["https://example.com"]),
        ("example.com:443", ["https://example.com", "https://a.example.com:443"], ["https://example.com:8443"]),
        ("192.0.2.1", ["https://192.0.2.1", "http://192.0.2.1:8080"], ["https://192.0.2.10"]),
        ("192.0.2.1:80", ["http://192.0.2.1"], ["https://192.0.2.1"]),
        ("192.0.2.0/24", ["https://192.0.2.1:6443"], ["https://192.0.3.1", "https://a.192.0.2.1.example"]),
        ("192.0.2.77/24", ["https://192.0.2.1"], ["https://192.0.3.1"]),
        ("2001:db8::/32", ["https://[2001:db8::1]:6443"], ["https://[2001:db9::1]", "https://192.0.2.1"]),
        ("2001:db8::1", ["https://[2001:DB8:0::1]"], ["https://[2001:db8::2]"]),
        ("[2001:db8::1]:443", ["https://[2001:db8::1]"], ["https://[2001:db8::1]:6443"]),
        ("192.0.2.0/24", ["https://[::ffff:192.0.2.1]"], []),
        (" a.example , 192.0.2.1 ,", ["https://a.example", "https://192.0.2.1"], ["https://b.example"]),
        (":443, ,192.0.2.0/255.255.255.0,/8,[::1", [], ["https://192.0.2.1", "https://example.com"]),
        ("1", [], ["https://192.0.2.1", "https://[2001:db8::1]"]),
        ("münchen.example", ["https://xn--mnchen-3ya.example"], ["https://munchen.example"]),
        ("", ["https://localhost", "https://127.9.9.9:6443", "https://[::1]", "http://[::ffff:127.0.0.1]"], []),
        ("", [], ["https://a.localhost", "https://localhost.example", "https://kubernetes.default.svc"]),
    ],
)
def test_no_proxy_means_what_it_means_to_go(no_proxy: str, straight: list[str], through: list[str]) -> None:
    assert {url: proxied(url, no_proxy) for url in (*straight, *through)} == {
        **dict.fromkeys(straight, False),
        **dict.fromkeys(through, True),
    }


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({"HTTPS_PROXY": PROXY}, "https://a.example", PROXY),
        ({"https_proxy": PROXY}, "https://a.example", PROXY),
        ({"HTTPS_PROXY": PROXY, "https_proxy": "http://other"}, "https://a.example", PROXY),
        ({"HTTPS_PROXY": "", "https_proxy": PROXY}, "https://a.example", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://a.example", None),
        ({"HTTPS_PROXY": PROXY}, "http://a.example", None),
        ({"ALL_PROXY": PROXY}, "https://a.example", None),
        ({"HTTPS_PROXY": "proxy.example.com:3128"}, "https://a.example", PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "", "no_proxy": "a.example"}, "https://a.example", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "b.example", "no_proxy": "a.example"}, "https://a.example", PROXY),
        ({"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}, "http://a.example", None),
        ({}, "https://a.example", None),
    ],
)
def test_variables_are_read_as_go_reads_them(environment: dict[str, str], url: str, proxy: str | None) -> None:
    assert proxy_for(url, environment) == proxy


@pytest.mark.parametrize("proxy", ["socks5://proxy.example.com:1080", "http://", "ftp://x", "http://[::1"])
def test_proxy_that_cannot_be_used_is_named_in_one_line_unless_it_is_not_needed(proxy: str) -> None:
    environment = {"HTTPS_PROXY": proxy, "NO_PROXY": "b.example"}
    with pytest.raises(UserError, match=r"^HTTPS_PROXY names no proxy .*; .* list a\.example in NO_PROXY$"):
        proxy_for("https://a.example", environment)
    assert proxy_for("https://b.example", environment) is None


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 128))
def test_range_covers_its_own_addresses_and_no_other(
    address: IPv4Address | IPv6Address, base: IPv4Address | IPv6Address, length: int
) -> None:
    network = ip_network(f"{base}/{min(length, base.max_prefixlen)}", strict=False)
    host = f"[{address}]" if address.version == 6 else str(address)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    loopback = (mapped or address).is_loopback
    assert proxied(f"https://{host}:6443", str(network)) is not (loopback or (mapped or address) in network)


labels = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)


@given(st.lists(labels, min_size=1, max_size=4), st.lists(labels, min_size=1, max_size=3))
def test_domain_covers_itself_and_what_is_below(host: list[str], domain: list[str]) -> None:
    below = host[-len(domain) :] == domain
    url = f"https://{'.'.join(host)}"
    if host == ["localhost"]:
        return
    assert proxied(url, ".".join(domain)) is not below
    assert proxied(url, "." + ".".join(domain)) is not (below and len(host) > len(domain))


@given(st.text(max_size=40))
def test_no_text_breaks_it_or_has_loopback_proxied(text: str) -> None:
    proxied("https://kubernetes.example", text)
    assert not proxied("https://127.0.0.1:6443", text)


def test_hosts_are_added_once_to_what_is_listed() -> None:
    assert bypassed(["a", "b"], {"NO_PROXY": "x, b"}) == "x,b,a"
    assert bypassed(["a"], {}) == "a"
