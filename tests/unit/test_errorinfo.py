"""The failure that travels in gRPC's trailer: what goes in comes out, in the standard's own wire format."""

import pytest

from vllama import errorinfo
from vllama.reasons import Reason

# google.rpc.Status{code: 5, message: "m"} with one ErrorInfo{reason: "NOT_FOUND", domain: "vllama", {"a": "1"}},
# written by hand from the field numbers of google/rpc/status.proto and error_details.proto.
INFO = b"\x0a\x09NOT_FOUND\x12\x06vllama\x1a\x06\x0a\x01a\x12\x011"
ANY = b"\x0a\x28type.googleapis.com/google.rpc.ErrorInfo\x12" + bytes([len(INFO)]) + INFO
STANDARD = b"\x08\x05\x12\x01m\x1a" + bytes([len(ANY)]) + ANY


def test_wire_format_is_the_standard_one() -> None:
    assert errorinfo.encode(Reason.NOT_FOUND, "m", None, {"a": 1}, 5) == STANDARD
    assert errorinfo.decode(STANDARD) == errorinfo.ErrorInfo("NOT_FOUND", "m", "", {"a": "1"}, 5)


def test_round_trip_keeps_everything() -> None:
    packed = errorinfo.encode(
        Reason.WONT_FIT, "cannot start é: too big", "free “memory”", {"needs_bytes": 9, "free": "1.5"}, 9
    )
    assert errorinfo.decode(packed) == errorinfo.ErrorInfo(
        "WONT_FIT", "cannot start é: too big", "free “memory”", {"needs_bytes": "9", "free": "1.5"}, 9
    )


def test_long_logs_lose_their_beginning_and_fit_into_metadata() -> None:
    log = "\n".join(f"│ line {n}" for n in range(5000))
    packed = errorinfo.encode(Reason.ENGINE_START_FAILED, "x" * 9000, "y" * 9000, {"log": log, "exit": 1}, 13)
    assert len(packed) < 6000
    info = errorinfo.decode(packed)
    assert info is not None
    assert info.facts["exit"] == "1"
    assert info.facts["log"].startswith("…") and info.facts["log"].endswith("line 4999")
    assert info.message.endswith("…") and len(info.message.encode()) == errorinfo.MESSAGE_MAX


@pytest.mark.parametrize(
    "packed",
    [b"", b"\xff\xff\xff", STANDARD[:-3], STANDARD.replace(b"vllama", b"foreig")],
    ids=["empty", "garbage", "cut", "foreign"],
)
def test_what_is_not_ours_is_none(packed: bytes) -> None:
    assert errorinfo.decode(packed) is None
