"""What a user does with TURN: over UDP, and where there is TLS also over TLS, on two ports, and over DTLS."""

from __future__ import annotations

import os
import random
import struct
import time
from typing import Any

from gevent import socket
from OpenSSL import SSL

from tests.soak.places import Places, connected
from wsgate.addr import Address
from wsgate.net.dtls_records import datagrams
from wsgate.turn import stun
from wsgate.turn.auth import long_term_key
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import ErrorCode, PasswordAlgorithm

PEER_HOST = "127.0.0.2"
"""At the relay's own address only other relayed addresses are peers (P5)."""
ALLOCATION_SECONDS = 5
SLACK_SECONDS = 2.0
"""So much of an allocation's lifetime has to be left for a packet."""
PATIENCE_SECONDS = 10.0
CHANNEL = 0x4001
PACKETS = 10
MTU_BYTES = 1200
KINDS = ("UDP", "TLS", "TLS at the web port", "DTLS")
"""Ways to a TURN server; without TLS only the first."""


class NotRelayed(Exception):
    """Something did not arrive; the text says what."""


class Refused(Exception):
    """There is no allocation; the text says why."""


class _Datagrams:
    """TURN over UDP."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(address)
        self._socket.settimeout(PATIENCE_SECONDS)

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    def recv(self) -> bytes:
        found: bytes = self._socket.recv(2000)
        return found

    def close(self) -> None:
        self._socket.close()


class _Stream:
    """TURN over TLS: what comes is cut where its length says (RFC 8656 §12.5; nothing here needs padding)."""

    def __init__(self, address: tuple[str, int], tls: Any) -> None:
        self._socket = connected(address, tls, PATIENCE_SECONDS)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def recv(self) -> bytes:
        head = self._exactly(4)
        return head + self._exactly(int.from_bytes(head[2:], "big") + (16 if head[0] < 0x40 else 0))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise ConnectionResetError("the gateway closed a TURN stream")
            data += piece
        return data

    def close(self) -> None:
        self._socket.close()


class _Secured:
    """TURN over DTLS; nothing is lost on loopback, but for what the gateway drops."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._below = _Datagrams(address)
        self._connection = SSL.Connection(SSL.Context(SSL.DTLS_CLIENT_METHOD), None)
        self._connection.set_ciphertext_mtu(MTU_BYTES)
        self._connection.set_connect_state()
        end = time.monotonic() + PATIENCE_SECONDS
        try:
            while not self._is_shaken():
                if time.monotonic() > end:
                    raise TimeoutError
        except BaseException:
            self.close()
            raise

    def _is_shaken(self) -> bool:
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            self._flush()
            self._connection.bio_write(self._below.recv())
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        data = b""
        try:
            while True:
                data += self._connection.bio_read(65536)
        except SSL.WantReadError:
            for datagram in datagrams(data):
                self._below.send(datagram)

    def send(self, data: bytes) -> None:
        self._connection.send(data)
        self._flush()

    def recv(self) -> bytes:
        while True:
            try:
                return bytes(self._connection.recv(2000))
            except SSL.WantReadError:
                self._connection.bio_write(self._below.recv())

    def close(self) -> None:
        self._below.close()


class _Turn:
    """Requests with credentials that came with a registration."""

    def __init__(self, transport: Any, username: str, password: str) -> None:
        self._transport, self._username = transport, username
        self._password, self._realm, self._nonce = password, "", b""
        self.refusal: ErrorCode | None = None
        """Why the last request was not granted."""

    def ask(self, method: Method, *fields: Any) -> bool:
        """True when it was granted."""
        if not self._nonce:
            challenge = self._exchange(method, ())
            self._realm, self._nonce = challenge.get(stun.REALM) or "", challenge.get(stun.NONCE) or b""
        key = long_term_key(self._username, self._realm, self._password, PasswordAlgorithm.MD5)
        login = (stun.USERNAME(self._username), stun.REALM(self._realm), stun.NONCE(self._nonce))
        found = self._exchange(method, (*login, *fields), integrity=(Integrity.SHA1, key))
        self.refusal = found.get(stun.ERROR_CODE)
        return found.message_class is MessageClass.SUCCESS

    def _exchange(self, method: Method, fields: Any, **options: Any) -> stun.Message:
        transaction_id = os.urandom(12)
        self._transport.send(stun.encode(method, MessageClass.REQUEST, transaction_id, fields, **options))
        while (found := stun.parse(self._transport.recv())).transaction_id != transaction_id:
            continue
        return found


def relay(places: Places, chance: random.Random, username: str, password: str) -> str:
    """Allocate, bind a channel to a peer, have packets brought back by it; mostly the allocation is freed.

    Returns what was done. Raises NotRelayed, Refused, and OSError where the stream was cut off.
    """
    kind, transport = "UDP", None
    peer: Any = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        peer.bind((PEER_HOST, 0))
        peer.settimeout(PATIENCE_SECONDS)
        if places.turn_tls is not None:
            kind = chance.choice(KINDS)
        if kind == "UDP" or places.turn_tls is None:
            transport = _Datagrams(places.turn)
        elif kind == "DTLS":
            transport = _Secured(places.turn)
        else:
            transport = _Stream(places.turn_tls if kind == "TLS" else places.web, places.tls)
        is_done = _relayed(_Turn(transport, username, password), transport, peer, chance)
        return f"relayed over {kind}" if is_done else "relays took too long"
    except TimeoutError:
        raise NotRelayed(f"a relayed packet or an answer is lost on loopback ({kind})") from None
    finally:
        if transport is not None:
            transport.close()
        peer.close()


def _relayed(turn: _Turn, transport: Any, peer: Any, chance: random.Random) -> bool:
    """False where the allocation was over before all was sent: this machine was too slow, not the gateway."""
    ends_at = time.monotonic() + ALLOCATION_SECONDS - SLACK_SECONDS
    if not turn.ask(Method.ALLOCATE, stun.REQUESTED_TRANSPORT(17), stun.LIFETIME(ALLOCATION_SECONDS)):
        raise Refused(f"an allocation was refused with {turn.refusal}")
    address = stun.XOR_PEER_ADDRESS(Address(*peer.getsockname()))
    if not turn.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(CHANNEL), address):
        if time.monotonic() > ends_at:
            return False
        raise NotRelayed(f"ChannelBind was refused with {turn.refusal}")
    for number in range(PACKETS):
        if time.monotonic() > ends_at:
            return False
        transport.send(struct.pack("!HHI", CHANNEL, 4, number))
        data, source = peer.recvfrom(100)
        if time.monotonic() > ends_at:
            return False
        peer.sendto(data, source)
        if transport.recv()[4:8] != struct.pack("!I", number):
            raise NotRelayed("another packet came back")
    if chance.random() < 0.7:
        turn.ask(Method.REFRESH, stun.LIFETIME(0))
    return True
