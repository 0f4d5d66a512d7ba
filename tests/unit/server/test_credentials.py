"""The credentials manager: sharing, renewal, back-off, and never anything that has expired."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from kiam.identity import Identity
from kiam.server.aws import credentials as module
from kiam.server.aws import lifetime
from kiam.server.aws.contract import Issued, STSError
from kiam.server.aws.credentials import CredentialsManager
from kiam.server.aws.entry import CredentialsUnavailableError
from kiam.server.aws.lifetime import backoff_delay, least_time_left, renewal_delay
from kiam.server.aws.metrics import Metrics
from tests.sandbox.process import until


def identity(name: str = "app", session: str = "kiam-kiam", external_id: str = "") -> Identity:
    return Identity(f"arn:aws:iam::123456789012:role/{name}", session, external_id)


class MovedClock:
    """The real clocks, moved."""

    def __init__(self) -> None:
        self.set_by = 0.0
        self.suspended = 0.0

    def wall(self) -> float:
        return time.time() + self.set_by + self.suspended

    def elapsed(self) -> float:
        return time.monotonic() + self.suspended


class FakeSTS:
    """Answers as told, in the threads of the manager."""

    def __init__(self, clock: MovedClock) -> None:
        self.clock = clock
        self.calls: list[Identity] = []
        self.lifetime = timedelta(minutes=15)
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.busy = self.busiest = 0
        self._lock = threading.Lock()

    def assume_role(self, identity: Identity) -> Issued:
        with self._lock:
            self.calls.append(identity)
            number = len(self.calls)
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            assert self.gate.wait(20)
            if self.error is not None:
                raise self.error
        finally:
            with self._lock:
                self.busy -= 1
        now = datetime.fromtimestamp(self.clock.wall(), UTC)
        return Issued(f"AKIA{number}", "secret", "token", now + self.lifetime, now)


class Bench:
    """A running manager, its STS and its metrics."""

    def __init__(self, fetchers: int) -> None:
        self.clock = MovedClock()
        self.sts = FakeSTS(self.clock)
        self.registry = CollectorRegistry()
        self.manager = CredentialsManager(
            self.sts, fetchers, timedelta(minutes=5), timedelta(minutes=15), Metrics(self.registry), self.clock
        )
        self.issued: list[Identity] = []
        self.failed: list[Identity] = []
        self.manager.listen(self.issued.append, self.failed.append)

    def metric(self, name: str) -> float | None:
        return self.registry.get_sample_value(name)


@asynccontextmanager
async def running(fetchers: int = 4) -> AsyncIterator[Bench]:
    bench = Bench(fetchers)
    task = asyncio.create_task(bench.manager.run())
    try:
        yield bench
    finally:
        bench.sts.gate.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_first_requests_share_one_call() -> None:
    async with running() as bench:
        bench.sts.gate.clear()
        requests = [asyncio.create_task(bench.manager.get(identity())) for _ in range(50)]
        await until(lambda: bench.sts.calls)
        bench.sts.gate.set()
        answers = await asyncio.gather(*requests)
        assert {answer.access_key_id for answer in answers} == {"AKIA1"}
        assert len(bench.sts.calls) == 1
        assert (await bench.manager.get(identity())).access_key_id == "AKIA1"
        assert bench.metric("kiam_sts_cache_miss_total") == 50
        assert bench.metric("kiam_sts_cache_hit_total") == 1
        assert bench.metric("kiam_sts_cacheSize") == 1
        assert bench.metric("kiam_sts_assumerole_timing_seconds_count") == 1
        assert bench.metric("kiam_sts_assumerole_current") == 0


@pytest.mark.parametrize("other", [identity("other"), identity(session="kiam-other"), identity(external_id="e")])
async def test_credentials_are_shared_under_all_three_fields_only(other: Identity) -> None:
    async with running() as bench:
        first, second = await bench.manager.get(identity()), await bench.manager.get(other)
        assert first.access_key_id != second.access_key_id


async def test_document_is_that_of_instance_metadata() -> None:
    async with running() as bench:
        document = await bench.manager.get(identity())
        assert (document.code, document.type, document.token) == ("Success", "AWS-HMAC", "token")
        for text in (document.expiration, document.last_updated):
            datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")


async def test_what_is_wanted_is_fetched_before_anyone_asks() -> None:
    async with running() as bench:
        bench.manager.want(identity())
        await until(lambda: bench.issued)
        assert bench.manager.peek(identity()) is not None


async def test_prefetching_drops_nobody_and_keeps_to_the_fetchers() -> None:
    async with running(fetchers=3) as bench:
        wanted = [identity(f"r{number}") for number in range(2000)]
        for one in wanted:
            bench.manager.want(one)
        await until(lambda: len(bench.issued) == len(wanted))
        assert len(bench.sts.calls) == len(wanted)
        assert bench.sts.busiest <= 3


async def test_pod_that_waits_goes_ahead_of_prefetching() -> None:
    async with running(fetchers=1) as bench:
        bench.sts.gate.clear()
        for number in range(100):
            bench.manager.want(identity(f"r{number}"))
        waiting = asyncio.create_task(bench.manager.get(identity("r99")))
        await until(lambda: bench.sts.calls)
        bench.sts.gate.set()
        await waiting
        assert bench.sts.calls.index(identity("r99")) <= 2
        await until(lambda: len(bench.issued) == 100)
        assert len(bench.sts.calls) == 100


async def test_identity_no_longer_wanted_when_its_turn_comes_is_not_fetched() -> None:
    async with running(fetchers=1) as bench:
        bench.sts.gate.clear()
        bench.manager.want(identity("a"))
        bench.manager.want(identity("b"))
        await until(lambda: bench.sts.calls)
        bench.manager.unwant(identity("b"))
        bench.manager.want(identity("c"))
        bench.sts.gate.set()
        await until(lambda: len(bench.issued) == 2)
        assert [one.role_arn[-1] for one in bench.sts.calls] == ["a", "c"]


async def test_wanted_credentials_are_renewed_before_they_expire() -> None:
    async with running() as bench:
        bench.sts.lifetime = timedelta(seconds=2.5)
        bench.manager.want(identity())
        await until(lambda: bench.issued)
        first = bench.manager.peek(identity())
        while len(bench.issued) < 2:
            assert bench.manager.peek(identity()) is not None, "there is no moment without credentials"
            await asyncio.sleep(0.01)
        assert bench.manager.peek(identity()) != first


async def test_credentials_nobody_wants_are_not_renewed_and_forgotten_at_their_end() -> None:
    async with running() as bench:
        bench.sts.lifetime = timedelta(seconds=1.2)
        bench.manager.want(identity())
        await until(lambda: bench.issued)
        bench.manager.unwant(identity())
        await until(lambda: bench.metric("kiam_sts_cacheSize") == 0)
        assert len(bench.sts.calls) == 1


async def test_expired_credentials_are_never_returned() -> None:
    async with running() as bench:
        first = await bench.manager.get(identity())
        bench.clock.set_by = 15 * 60 - 1
        assert bench.manager.peek(identity()) == first
        bench.clock.set_by = 15 * 60 + 1
        assert bench.manager.peek(identity()) is None
        bench.sts.error = STSError("AccessDenied", "no")
        with pytest.raises(CredentialsUnavailableError):
            await bench.manager.get(identity())


async def test_refusal_is_one_call_for_all_pods_and_told_at_once_afterwards() -> None:
    async with running() as bench:
        bench.sts.error = STSError("AccessDenied", "User: x is not authorized to perform: sts:AssumeRole")
        bench.sts.gate.clear()
        waiting = [asyncio.create_task(bench.manager.get(identity())) for _ in range(20)]
        await until(lambda: bench.sts.calls)
        bench.sts.gate.set()
        for failure in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(failure, CredentialsUnavailableError)
            assert str(failure) == "AccessDenied: User: x is not authorized to perform: sts:AssumeRole"
            assert failure.retry_after > 1
        for _ in range(20):
            with pytest.raises(CredentialsUnavailableError):
                await bench.manager.get(identity())
        assert len(bench.sts.calls) == 1
        assert bench.metric("kiam_sts_issuing_errors_total") == 1
        assert bench.failed == [identity()]


async def test_refused_identity_is_asked_for_again_by_itself_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "backoff_delay", lambda code, failures: 0.05)
    async with running() as bench:
        bench.sts.error = STSError("AccessDenied", "no")
        bench.manager.want(identity())
        await until(lambda: len(bench.failed) >= 2)
        bench.sts.error = None
        await until(lambda: bench.issued)
        assert bench.manager.failure(identity()) is None


async def test_pods_that_come_and_go_do_not_undo_the_back_off() -> None:
    async with running() as bench:
        bench.sts.error = STSError("AccessDenied", "no")
        for _ in range(20):
            bench.manager.want(identity())
            await until(lambda: bench.failed)
            bench.manager.unwant(identity())
            await asyncio.sleep(0.01)
        assert len(bench.sts.calls) == 1


async def test_one_identity_refused_does_not_hold_up_another() -> None:
    async with running() as bench:
        bench.sts.error = STSError("AccessDenied", "no")
        with pytest.raises(CredentialsUnavailableError):
            await bench.manager.get(identity("bad"))
        bench.sts.error = None
        assert await bench.manager.get(identity("good"))


async def test_failed_renewal_leaves_what_is_held_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "renewal_delay", lambda lifetime, refresh: 0.05)
    async with running() as bench:
        bench.manager.want(identity())
        await until(lambda: bench.issued)
        bench.sts.error = STSError("Throttling", "Rate exceeded")
        await until(lambda: bench.failed)
        assert await bench.manager.get(identity())
        assert str(bench.manager.failure(identity())) == "Throttling: Rate exceeded"


async def test_credentials_that_come_expired_are_a_failure() -> None:
    async with running() as bench:
        bench.sts.lifetime = timedelta(seconds=-1)
        with pytest.raises(CredentialsUnavailableError, match=r"^Expired: .*is the server's clock right"):
            await bench.manager.get(identity())
        assert len(bench.sts.calls) == 1


async def test_unforeseen_error_is_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as bench:
        bench.sts.error = RuntimeError("with something secret")
        with pytest.raises(CredentialsUnavailableError, match="internal error") as failure:
            await bench.manager.get(identity())
        assert "secret" not in str(failure.value)
        bench.sts.error = None
        assert await bench.manager.get(identity("other")), "the fetcher is still there"


async def test_caller_that_gives_up_does_not_cancel_the_call_for_others() -> None:
    async with running() as bench:
        bench.sts.gate.clear()
        leaver, stayer = (asyncio.create_task(bench.manager.get(identity())) for _ in range(2))
        await until(lambda: bench.sts.calls)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
        bench.sts.gate.set()
        assert (await stayer).access_key_id == "AKIA1"


def test_secrets_are_not_in_the_text_of_credentials() -> None:
    now = datetime.now(UTC)
    text = repr(Issued("AKIA1", "the-secret", "the-token", now, now))
    assert "the-secret" not in text
    assert "the-token" not in text


@given(st.floats(1, 43200), st.floats(0, 43200))
def test_renewal_is_before_the_refresh_time_and_always_before_expiry(lifetime: float, refresh: float) -> None:
    delay = renewal_delay(lifetime, least_time_left(lifetime, refresh))
    assert delay >= 1
    if lifetime > refresh:
        assert delay <= max(lifetime - refresh, 1)
        assert delay >= 0.9 * (lifetime - refresh)
    else:
        assert delay <= max(lifetime / 2, 1)


def test_renewals_are_spread() -> None:
    assert len({renewal_delay(900, 300) for _ in range(100)}) > 50


@pytest.mark.parametrize("code", ["AccessDenied", "Throttling", "EndpointConnectionError", "ServiceUnavailable"])
def test_back_off_grows_and_is_bounded(code: str) -> None:
    delays = [backoff_delay(code, failures) for failures in (1, 4, 50)]
    assert 0 < delays[0] < delays[1] <= delays[2] <= 130


async def test_clock_set_forward_has_what_is_wanted_renewed_at_once_though_nobody_asks() -> None:
    async with running() as bench:
        bench.manager.want(identity())
        await until(lambda: bench.issued)
        bench.clock.set_by = 20 * 60
        assert bench.manager.peek(identity()) is None
        await until(lambda: len(bench.issued) == 2)
        assert bench.manager.peek(identity()) is not None


async def test_end_of_a_suspension_has_what_is_wanted_renewed_at_once() -> None:
    async with running() as bench:
        bench.manager.want(identity())
        await until(lambda: bench.issued)
        bench.clock.suspended = 20 * 60
        assert bench.manager.peek(identity()) is None
        await until(lambda: len(bench.issued) == 2)


async def test_whoever_asks_for_what_expired_by_a_step_waits_for_one_call_only() -> None:
    async with running() as bench:
        await bench.manager.get(identity())
        bench.clock.set_by = 20 * 60
        assert (await bench.manager.get(identity())).access_key_id == "AKIA2"
        assert len(bench.sts.calls) == 2


async def test_clock_set_back_makes_nothing_live_longer() -> None:
    async with running() as bench:
        await bench.manager.get(identity())
        bench.clock.set_by = -3600
        assert bench.manager.peek(identity()) is not None
        bench.clock.suspended = 15 * 60 + 1
        assert bench.manager.peek(identity()) is None


async def test_step_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as bench:
        bench.clock.set_by = 1200
        await until(lambda: "the clock was set +1200 s" in caplog.text)
        bench.clock.set_by = 1800
        await until(lambda: "the clock was set +600 s" in caplog.text)
        assert caplog.text.count("the clock was set") == 2


async def test_credentials_with_little_time_left_give_way_to_newer_ones() -> None:
    async with running() as bench:
        assert (await bench.manager.get(identity())).access_key_id == "AKIA1"
        bench.clock.suspended = 10 * 60 + 1
        assert bench.manager.ready(identity()) is None
        assert (await bench.manager.get(identity())).access_key_id == "AKIA2"


async def test_credentials_with_little_time_left_are_given_when_there_are_no_newer_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LATE_PATIENCE", 0.1)
    async with running() as bench:
        await bench.manager.get(identity())
        bench.clock.suspended = 10 * 60 + 1
        bench.sts.gate.clear()
        assert (await bench.manager.get(identity())).access_key_id == "AKIA1", "STS hangs"
        bench.sts.error = STSError("Throttling", "Rate exceeded")
        bench.sts.gate.set()
        await until(lambda: bench.failed)
        assert (await bench.manager.get(identity())).access_key_id == "AKIA1", "STS refuses"
        assert len(bench.sts.calls) == 2


async def test_pod_that_comes_late_in_the_life_of_credentials_nobody_wanted_has_them_renewed_at_once() -> None:
    async with running() as bench:
        bench.manager.want(identity())
        await until(lambda: bench.issued)
        bench.manager.unwant(identity())
        bench.clock.suspended = 11 * 60
        bench.manager.want(identity())
        await until(lambda: len(bench.issued) == 2)


async def test_namespace_with_a_thousand_roles_does_not_hold_up_another_ones_prefetch() -> None:
    async with running(fetchers=1) as bench:
        bench.sts.gate.clear()
        for number in range(1000):
            bench.manager.want(identity(f"r{number}"), "greedy")
        bench.manager.want(identity("r999"), "modest")
        bench.manager.want(identity("other"), "modest")
        bench.sts.gate.set()
        await until(lambda: len(bench.issued) == 1001)
        order = [one.role_arn.rpartition("/")[2] for one in bench.sts.calls]
        assert order.index("r999") <= 3
        assert order.index("other") <= 5
        assert len(bench.sts.calls) == 1001


async def test_pods_that_wait_by_the_thousand_do_not_hold_up_another_namespaces_pod() -> None:
    async with running(fetchers=1) as bench:
        bench.sts.gate.clear()
        waiting = [asyncio.create_task(bench.manager.get(identity(f"r{number}"), "greedy")) for number in range(300)]
        await until(lambda: bench.sts.calls)
        modest = [asyncio.create_task(bench.manager.get(identity(name), "modest")) for name in ("r299", "other")]
        await asyncio.sleep(0)
        bench.sts.gate.set()
        await asyncio.gather(*waiting, *modest)
        order = [one.role_arn.rpartition("/")[2] for one in bench.sts.calls]
        assert order.index("r299") <= 2
        assert order.index("other") <= 4


async def test_one_call_is_kept_for_pods_that_wait() -> None:
    async with running(fetchers=3) as bench:
        bench.sts.gate.clear()
        for number in range(10):
            bench.manager.want(identity(f"r{number}"), "greedy")
        await until(lambda: len(bench.sts.calls) == 2)
        waiting = asyncio.create_task(bench.manager.get(identity("other"), "modest"))
        await until(lambda: len(bench.sts.calls) == 3)
        assert bench.sts.calls[-1] == identity("other")
        bench.sts.gate.set()
        await waiting


async def test_identity_that_is_to_settle_is_not_fetched_if_it_is_gone_by_then_nor_before_a_pod_waits() -> None:
    async with running() as bench:
        for number in range(50):
            bench.manager.want(identity(f"r{number}"), "ns", settle=0.3)
            bench.manager.unwant(identity(f"r{number}"), "ns")
        bench.manager.want(identity("kept"), "ns", settle=0.3)
        bench.manager.want(identity("awaited"), "ns", settle=60)
        assert await bench.manager.get(identity("awaited"), "ns")
        await until(lambda: len(bench.issued) == 2)
        assert {one.role_arn.rpartition("/")[2] for one in bench.sts.calls} == {"awaited", "kept"}


async def test_pushes_are_hits_if_no_pod_waited_for_what_is_pushed() -> None:
    async with running() as bench:
        bench.manager.want(identity("ahead"))
        await until(lambda: bench.issued)
        bench.manager.count_push(identity("ahead"))
        await bench.manager.get(identity("awaited"))
        bench.manager.count_push(identity("awaited"))
        assert bench.metric("kiam_sts_cache_hit_total") == 1
        assert bench.metric("kiam_sts_cache_miss_total") == 2
