"""HTTP/2's first words before gRPC is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kiam.server.grpc.preface import FIRST_SETTINGS, FirstAcknowledgement

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ACKNOWLEDGEMENT = b"\0\0\0\4\1\0\0\0\0"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


frames = st.builds(
    frame, st.integers(0, 12), st.sampled_from((0, 4)), st.integers(0, 2**31 - 1), st.binary(max_size=40)
)


def _through(data: bytes, cuts: list[int]) -> bytes:
    acknowledgement, passed, last = FirstAcknowledgement(), b"", 0
    for cut in [*sorted(cuts), len(data)]:
        passed += acknowledgement(data[last:cut])
        last = max(last, cut)
    return passed


@given(st.lists(frames, max_size=5), st.lists(frames | st.just(ACKNOWLEDGEMENT), max_size=5), st.data())
def test_exactly_the_first_acknowledgement_is_taken_out(
    before: list[bytes], after: list[bytes], data: st.DataObject
) -> None:
    sent = PREFACE + b"".join(before) + ACKNOWLEDGEMENT + b"".join(after)
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=10))
    assert _through(sent, cuts) == PREFACE + b"".join(before + after)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=10))
def test_what_is_no_http2_is_passed_on_but_for_an_unfinished_header(sent: bytes, cuts: list[int]) -> None:
    passed = _through(sent, [min(cut, len(sent)) for cut in cuts])
    assert len(sent) - len(passed) <= 9
    assert ACKNOWLEDGEMENT[:5] in sent or sent.startswith(passed)


def test_settings_sent_first_are_an_empty_frame_and_no_acknowledgement() -> None:
    assert frame(4, 0, 0, b"") == FIRST_SETTINGS
