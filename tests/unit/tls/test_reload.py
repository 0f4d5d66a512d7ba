from __future__ import annotations

import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from kiam.errors import UserError
from kiam.tls import TLSFiles
from kiam.tls.inspection import load, load_summary
from kiam.tls.metrics import TLSMetrics
from kiam.tls.reload import TLSReloader
from kiam.tls.summary import Side
from tests.sandbox.certificates import Authority, MountedSecret, days, write

AUTHORITY = Authority.make()
FIRST = AUTHORITY.sign("first")
SECOND = AUTHORITY.sign("second")


def secret(directory: Path) -> MountedSecret:
    return MountedSecret(directory, FIRST.cert, FIRST.key, AUTHORITY.pem)


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def gauges(registry: CollectorRegistry, side: str = "server") -> tuple[float | None, float | None, float | None]:
    prefix = f"grpc_{side}_tls_certificate"
    return (
        registry.get_sample_value(f"{prefix}_update_error"),
        registry.get_sample_value(f"{prefix}_verify_error"),
        registry.get_sample_value(f"{prefix}_expiry_seconds"),
    )


def test_no_scrape_shows_the_old_expiry_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, seen = CollectorRegistry(), []
    third = AUTHORITY.sign("third", period=days(0, 300))
    mounted = secret(tmp_path)
    reloader = TLSReloader(mounted.files, Side.SERVER, load_summary, TLSMetrics(Side.SERVER, registry))
    mounted.swap(third.cert, FIRST.key, AUTHORITY.pem)
    assert not reloader.refresh()
    set_gauge = Gauge.set

    def then_scrape(gauge: Gauge, value: float) -> None:
        set_gauge(gauge, value)
        error, _, expiry = gauges(registry)
        seen.append((error, expiry))

    monkeypatch.setattr(Gauge, "set", then_scrape)
    mounted.swap(third.cert, third.key, AUTHORITY.pem)
    assert reloader.refresh()
    assert (0, FIRST.not_after.timestamp()) not in seen
    assert seen[-1] == (0, third.not_after.timestamp())


def test_swap_of_the_data_symlink_is_taken_over_once(tmp_path: Path) -> None:
    mounted = secret(tmp_path)
    reloader = TLSReloader(mounted.files, Side.SERVER, load_summary)
    assert not reloader.refresh()
    mounted.swap(SECOND.cert, SECOND.key, AUTHORITY.pem)
    assert reloader.refresh()
    assert reloader.material.cert == SECOND.cert
    assert reloader.inspected.subject == "'second'"
    assert not reloader.refresh()


def test_files_written_in_place_are_taken_over(tmp_path: Path) -> None:
    files = write(tmp_path, FIRST, AUTHORITY.pem)
    reloader = TLSReloader(files, Side.CLIENT, load_summary)
    write(tmp_path, SECOND, AUTHORITY.pem)
    assert reloader.refresh()
    assert reloader.material.key == SECOND.key


def test_swap_to_the_same_contents_changes_nothing(tmp_path: Path) -> None:
    mounted = secret(tmp_path)
    reloader = TLSReloader(mounted.files, Side.SERVER, load_summary)
    mounted.swap(FIRST.cert, FIRST.key, AUTHORITY.pem)
    assert not reloader.refresh()


@pytest.mark.parametrize(
    ("cert", "key", "ca"),
    [
        (SECOND.cert, FIRST.key, AUTHORITY.pem),
        (b"", SECOND.key, AUTHORITY.pem),
        (SECOND.cert, SECOND.key, b""),
        (*(lambda issued: (issued.cert, issued.key))(AUTHORITY.sign("late", period=days(-3, -1))), AUTHORITY.pem),
    ],
    ids=["half swapped", "empty certificate", "empty authority", "expired"],
)
def test_bad_files_leave_the_good_ones_in_use_until_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cert: bytes, key: bytes, ca: bytes
) -> None:
    registry = CollectorRegistry()
    mounted = secret(tmp_path)
    reloader = TLSReloader(mounted.files, Side.SERVER, load_summary, TLSMetrics(Side.SERVER, registry))
    mounted.swap(cert, key, ca)
    assert not reloader.refresh()
    assert not reloader.refresh()
    assert reloader.material.cert == FIRST.cert
    assert gauges(registry) == (1, 0, FIRST.not_after.timestamp())
    refusals = [record for record in caplog.records if "refused" in record.message]
    assert len(refusals) == 1
    assert f"the certificate until {FIRST.not_after:%Y-%m-%d %H:%M:%SZ} stays in use" in refusals[0].message
    mounted.swap(SECOND.cert, SECOND.key, AUTHORITY.pem)
    assert reloader.refresh()
    assert gauges(registry) == (0, 0, SECOND.not_after.timestamp())


def test_files_gone_leave_the_good_ones_in_use_and_are_taken_over_when_back(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    mounted = secret(tmp_path)
    reloader = TLSReloader(mounted.files, Side.CLIENT, load_summary, TLSMetrics(Side.CLIENT, registry))
    (tmp_path / "..data").unlink()
    assert not reloader.refresh()
    assert gauges(registry, "client")[0] == 1
    mounted.swap(SECOND.cert, SECOND.key, AUTHORITY.pem)
    assert reloader.refresh()
    assert gauges(registry, "client")[0] == 0


def test_certificate_issued_for_later_is_taken_over_when_its_time_comes(tmp_path: Path) -> None:
    clock = Clock()
    mounted = secret(tmp_path)
    reloader = TLSReloader(mounted.files, Side.SERVER, load_summary, now=clock)
    later = AUTHORITY.sign("later", period=days(1, 40))
    mounted.swap(later.cert, later.key, AUTHORITY.pem)
    assert not reloader.refresh()
    clock.ahead = timedelta(days=1)
    assert reloader.refresh()
    assert reloader.material.cert == later.cert


def test_refused_files_are_looked_at_again_even_if_they_seem_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two writes within one tick of the file system's clock have one modification time."""
    clock = Clock()
    files = write(tmp_path, FIRST, AUTHORITY.pem)
    reloader = TLSReloader(files, Side.SERVER, load_summary, now=clock)
    files.key.write_bytes(SECOND.key)
    assert not reloader.refresh()
    frozen = files.fingerprint()
    monkeypatch.setattr(TLSFiles, "fingerprint", lambda _: frozen)
    clock.ahead += timedelta(seconds=2)
    assert not reloader.refresh()
    files.cert.write_bytes(SECOND.cert)
    clock.ahead += timedelta(seconds=2)
    assert reloader.refresh()
    assert reloader.material.cert == SECOND.cert
    assert len([record for record in caplog.records if "refused" in record.message]) == 1


def test_expiry_while_in_use_is_logged_once_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    clock = Clock()
    reloader = TLSReloader(secret(tmp_path).files, Side.SERVER, load_summary, TLSMetrics(Side.SERVER, registry), clock)
    clock.ahead = timedelta(days=91)
    reloader.refresh()
    reloader.refresh()
    assert gauges(registry) == (0, 1, FIRST.not_after.timestamp())
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert f"expired at {FIRST.not_after:%Y-%m-%d %H:%M:%SZ}" in record.message


def test_own_certificate_outside_the_authority_file_works_and_shows_as_verify_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    files = write(tmp_path, FIRST, Authority.make("other").pem)
    TLSReloader(files, Side.SERVER, load_summary, TLSMetrics(Side.SERVER, registry))
    assert gauges(registry)[1] == 1
    assert "was issued by 'test authority'" in caplog.text


def test_unusable_files_at_the_start_are_the_users_error(tmp_path: Path) -> None:
    expired = AUTHORITY.sign("expired", period=days(-3, -1))
    with pytest.raises(UserError, match="expired at"):
        TLSReloader(write(tmp_path, expired, AUTHORITY.pem), Side.SERVER, load_summary)


async def test_watch_calls_back_after_each_change(tmp_path: Path) -> None:
    mounted = secret(tmp_path)
    reloader = TLSReloader(mounted.files, Side.CLIENT, load_summary)
    changed = asyncio.Event()
    watching = asyncio.create_task(reloader.watch(changed.set, interval=0.01))
    mounted.swap(SECOND.cert, SECOND.key, AUTHORITY.pem)
    async with asyncio.timeout(20):
        await changed.wait()
    assert reloader.material.cert == SECOND.cert
    watching.cancel()


def test_files_read_while_they_are_swapped_always_belong_together(tmp_path: Path) -> None:
    pairs = [AUTHORITY.sign(f"{number}") for number in range(2)]
    mounted = secret(tmp_path)
    stop = threading.Event()

    def swap_for_ever() -> None:
        while not stop.is_set():
            for pair in pairs:
                mounted.swap(pair.cert, pair.key, AUTHORITY.pem)
                stop.wait(0.0005)

    swapping = threading.Thread(target=swap_for_ever)
    swapping.start()
    try:
        for _ in range(300):
            load(mounted.files, Side.SERVER)
    finally:
        stop.set()
        swapping.join()


def test_a_swap_between_two_reads_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = secret(tmp_path)
    read_bytes = Path.read_bytes
    swaps = iter([True])

    def read_and_swap(path: Path) -> bytes:
        content = read_bytes(path)
        if path == mounted.files.cert and next(swaps, False):
            mounted.swap(SECOND.cert, SECOND.key, AUTHORITY.pem)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_swap)
    material = mounted.files.read()
    assert (material.cert, material.key) == (SECOND.cert, SECOND.key)


def test_files_that_never_hold_still_are_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, FIRST, AUTHORITY.pem)
    looks = iter(range(1000))
    monkeypatch.setattr(TLSFiles, "fingerprint", lambda _: next(looks))
    with pytest.raises(UserError, match="change faster than they can be read"):
        files.read()


def test_refused_handshake_shows_until_one_succeeds(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    reloader = TLSReloader(secret(tmp_path).files, Side.CLIENT, load_summary, TLSMetrics(Side.CLIENT, registry))
    reloader.handshake_ended(accepted=False)
    assert gauges(registry, "client")[1] == 1
    reloader.handshake_ended(accepted=True)
    assert gauges(registry, "client")[1] == 0


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "expires at" in record.getMessage()]


def test_what_expires_soon_is_said_once_a_day_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A certificate for a year with three days left, of which only a metric knew."""
    registry, clock = CollectorRegistry(), Clock()
    authority = Authority.make("for a decade", days(-1, 3650))
    issued = authority.sign("kiam-server", period=days(-362, 3))
    mounted = MountedSecret(tmp_path, issued.cert, issued.key, authority.pem)
    reloader = TLSReloader(mounted.files, Side.SERVER, load_summary, TLSMetrics(Side.SERVER, registry), clock)
    for _ in range(3):
        reloader.refresh()
    assert len(warnings(caplog)) == 1
    assert f"expires at {issued.not_after:%Y-%m-%d %H:%M:%SZ}; renew it" in warnings(caplog)[0]
    assert registry.get_sample_value("grpc_server_tls_certificate_expires_soon") == 1
    clock.ahead = timedelta(days=1, minutes=1)
    reloader.refresh()
    assert len(warnings(caplog)) == 2
    renewed = authority.sign("kiam-server", period=days(0, 365))
    mounted.swap(renewed.cert, renewed.key, authority.pem)
    assert reloader.refresh()
    assert registry.get_sample_value("grpc_server_tls_certificate_expires_soon") == 0
    assert len(warnings(caplog)) == 2


@pytest.mark.parametrize(
    ("life", "left", "soon"),
    [(365, 31, False), (365, 29, True), (90, 31, False), (90, 29, True), (3, 3, True), (1, 0.5, False), (1, 0.2, True)],
)
def test_soon_is_thirty_days_or_the_last_third_of_a_very_short_life(
    tmp_path: Path, life: float, left: float, soon: bool
) -> None:
    authority = Authority.make("for a decade", days(-400, 3650))
    issued = authority.sign("x", period=days(left - life, left))
    _, inspected = load(write(tmp_path, issued, authority.pem), Side.CLIENT)
    assert inspected.expires_soon(datetime.now(UTC)) is soon
