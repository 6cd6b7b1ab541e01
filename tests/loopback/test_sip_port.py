"""STUN keep-alives over the daemon's SIP port: answered to who may send there, and to nobody else (RFC 5626 §8, N6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.daemon import Daemon
from tests.interop.raw import UdpPeer, sip
from tests.interop.registration import EMBEDDED, write_users
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.stun import MessageClass, Method


@pytest.mark.parametrize("trusted", ["127.0.0.1", ""])
def test_a_keep_alive_is_answered_to_trusted_sources_alone(tmp_path: Path, trusted: str):
    write_users(tmp_path, "bob")
    daemon = Daemon(tmp_path, EMBEDDED, sip_options=f"trusted_sources = {trusted}")
    phone = UdpPeer()
    try:
        gateway = (daemon.sip_host, daemon.sip)
        phone.send(stun.encode(Method.BINDING, MessageClass.REQUEST, b"keep-alive-1", ()), gateway)
        lines = (f"Via: SIP/2.0/UDP 127.0.0.1:{phone.port};branch=z9hG4bK1;rport", "Max-Forwards: 70")
        lines += ("From: <sip:x@y>;tag=1", "To: <sip:x@y>", "Call-ID: 1", "CSeq: 1 OPTIONS")
        phone.send(sip(f"OPTIONS sip:127.0.0.1:{daemon.sip} SIP/2.0", *lines), gateway)
        got = phone.receive()
        assert got is not None
        if trusted:
            assert stun.parse(got[0]).get(stun.XOR_MAPPED_ADDRESS) == Address("127.0.0.1", phone.port)
            got = phone.receive()
            assert got is not None
        assert got[0].startswith(b"SIP/2.0 200 " if trusted else b"SIP/2.0 403 ")
    finally:
        phone.close()
        daemon.stop()
