"""TURN over DTLS on the ports of TURN over UDP, by pyOpenSSL over memory BIOs (RFC 9147 §5.1, RFC 7983; rule E2).

A datagram that begins like DTLS comes here. Only a ClientHello opens anything: one Connection for each socket answers
all of them with a cookie, an HMAC over the address, and keeps nothing. Once the cookie came back that Connection is the
client's, and the socket gets a new one.
"""

from __future__ import annotations

import heapq
import hmac
import socket
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from wsgate.addr import Address
from wsgate.errors import StartError
from wsgate.guard import Guard
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.clock import LoopTimer, now
from wsgate.net.dtls_records import DATAGRAM_BYTES, begins_with_hello, datagrams, is_whole
from wsgate.net.relay import Relay
from wsgate.net.relay_sockets import Routes, SocketAddress
from wsgate.net.tls import ALPN_TURN
from wsgate.turn.effects import Client

FIRST_BYTES = range(20, 64)
"""What DTLS records begin with (RFC 7983 §7)."""

HELLO_BYTES_MAX = 4096
"""No datagram over this is taken for a ClientHello. OpenSSL reads 16 KiB at once of what it listens to: the rest would
stay there, for each packet of a stranger, before the hello of the next client."""

COOKIE_SECONDS = 30.0
"""A cookie is good for at least so long, at most for twice that."""

IDLE_SECONDS = 30.0
"""An association without an allocation, or one whose handshake does not end, is forgotten so long after its last
message."""

CHECK_SECONDS = 0.5
"""How often a handshake is looked at, to send again what may have been lost."""

_OPTIONS = (
    (SSL.OP_COOKIE_EXCHANGE or 0)
    | SSL.OP_NO_QUERY_MTU
    | SSL.OP_NO_TICKET
    | SSL.OP_NO_COMPRESSION
    | SSL.OP_NO_RENEGOTIATION
    | SSL.OP_CIPHER_SERVER_PREFERENCE
)
_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:ECDHE+AES:DHE+AES:!SHA1:!AESCCM:!aNULL:!eNULL:!PSK:!SRP"
"""Keys of one association only, no broken hash: what the standard library allows TLS on streams (RFC 9325 §4.2)."""
_DTLS_1_2 = 0xFEFD


class Association:
    """One client over DTLS; a Path of the relay engine once its cookie came back."""

    __slots__ = (
        "_connection",
        "_owner",
        "_socket",
        "address",
        "client",
        "ended",
        "established",
        "heard",
        "path",
        "routes",
    )

    def __init__(self, owner: Associations, connection: Any, sock: socket.socket, address: Address) -> None:
        self.path = -1
        self.routes: Routes = {}
        self.ended = False
        self.established = False
        self.heard = now()
        self.address = address
        self._owner = owner
        self._connection = connection
        self._socket = sock
        owner.relay.open_path(self)
        self.client = Client(self.path, address)

    def receive(self, data: bytes) -> None:
        """One datagram of whole records."""
        self._connection.bio_write(data)
        self.advance()

    def sendto(self, data: bytes | memoryview, _address: SocketAddress) -> int:
        """Media, as one record in one datagram. Raises OSError."""
        if self.ended or not self.established:
            raise BlockingIOError
        try:
            self._connection.send(bytes(data))
        except SSL.Error as error:
            raise OSError("not sent over DTLS") from error
        self._flush()
        return len(data)

    def answer(self, data: bytes, address: SocketAddress) -> None:
        """A STUN answer. Raises OSError."""
        self.sendto(data, address)

    def handle_timer(self) -> float | None:
        """Seconds until the next look at it; None: it has ended."""
        if self.ended:
            return None
        idle = now() - self.heard
        has_allocation = self._owner.relay.server.has_allocation(self.client)
        if idle >= IDLE_SECONDS and not has_allocation:
            self._owner.counters.count("turn_dtls_timeouts")
            self.end()
            return None
        if self.established:
            return IDLE_SECONDS if has_allocation else IDLE_SECONDS - idle
        if self._connection.DTLSv1_handle_timeout():
            self._flush()
        return CHECK_SECONDS

    def end(self) -> None:
        """Forget the client and free what it held."""
        if self.ended:
            return
        self.ended = True
        try:
            self._connection.shutdown()
            self._flush()
        except SSL.Error:
            self._owner.counters.count("turn_dtls_broken")
        self._owner.finish(self)

    def advance(self) -> None:
        """Take what OpenSSL has understood, and send what it wants to be sent."""
        try:
            if not self.established:
                self._connection.do_handshake()
                self.established = True
                self._owner.counters.count("turn_dtls_opened")
            while not self.ended:
                self._message(self._connection.recv(65536))
        except SSL.WantReadError:
            self._flush()
        except SSL.ZeroReturnError:
            self.end()
        except SSL.Error as error:
            self._owner.counters.count("turn_dtls_failed")
            logger.debug("turn, %s: DTLS: %s", self.address, error)
            self._flush()
            self.end()

    def _message(self, data: bytes) -> None:
        """What was in one record: STUN or ChannelData."""
        self.heard = now()
        if not data or data[0] > 0x7F or 4 <= data[0] < 0x40:
            self._owner.counters.count("turn_garbage_dropped")
        elif data[0] < 4:
            self._owner.relay.stun_message(data, self.client)
        elif len(data) < 4:
            self._owner.counters.count("turn_channel_data_dropped")
        else:
            self._owner.relay.channel_data(data, self, self.address)

    def _flush(self) -> None:
        for datagram in datagrams(_pending(self._connection)):
            try:
                self._socket.sendto(datagram, self.address)
            except OSError:
                self._owner.counters.count("turn_send_failed")


class Associations:
    """Every DTLS association of a worker, by the socket it came through and its address.

    Raises StartError for a certificate that cannot be used.
    """

    def __init__(
        self,
        relay: Relay,
        guard: Guard,
        counters: Counters,
        random_bytes: Callable[[int], bytes],
        certificate: str,
        private_key: str,
    ) -> None:
        self.relay = relay
        self.counters = counters
        self._guard = guard
        self._cookie_key = random_bytes(32)
        self._asking = b""
        self._context = self._new_context(certificate, private_key)
        self._listening: dict[int, Any] = {}
        self._open: dict[tuple[int, SocketAddress], Association] = {}
        self._key_of: dict[Association, tuple[int, SocketAddress]] = {}
        self._timers: list[tuple[float, int, Association]] = []
        self._serial = 0
        self._loop_timer = LoopTimer(self._tick)

    def __len__(self) -> int:
        return len(self._open)

    def prepare(self, certificate: str, private_key: str) -> Callable[[], None]:
        """Read the files again (SIGHUP); nothing has changed until what this returns is called. Raises StartError."""
        context = self._new_context(certificate, private_key)

        def take() -> None:
            self._context = context
            self._listening.clear()

        return take

    def receive(self, sock: socket.socket, data: bytes, source: SocketAddress) -> None:
        """One datagram whose first byte is of FIRST_BYTES (rule E2)."""
        if not is_whole(data):
            self.counters.count("turn_garbage_dropped")
            return
        key = sock.fileno(), source
        association = self._open.get(key)
        is_hello = begins_with_hello(data)
        if association is not None and (not association.established or not is_hello):
            association.receive(data)
        elif is_hello and len(data) <= HELLO_BYTES_MAX:
            self._hello(key, sock, data)
        else:
            self.counters.count("turn_garbage_dropped")

    def stop(self) -> None:
        """Take leave of every client."""
        for association in list(self._open.values()):
            association.end()
        self._loop_timer.stop()
        self._timers.clear()
        self._listening.clear()

    def finish(self, association: Association) -> None:
        """`association` has ended."""
        key = self._key_of.pop(association)
        if self._open.get(key) is association:
            del self._open[key]
        self.relay.close_path(association.client)
        self._guard.release(association.address.host)
        self._guard.close()

    def _hello(self, key: tuple[int, SocketAddress], sock: socket.socket, data: bytes) -> None:
        """Answer a ClientHello with a cookie, or begin an association where the cookie came back.

        A client that comes again from its old address takes its place (RFC 6347 §4.2.8).
        """
        descriptor, source = key
        listening = self._listening.pop(descriptor, None)
        if listening is None:
            listening = SSL.Connection(self._context, None)
            listening.set_ciphertext_mtu(DATAGRAM_BYTES)
        self._asking = b"%d %s" % (descriptor, str(Address(*source)).encode())
        listening.bio_write(data)
        try:
            listening.DTLSv1_listen()
        except SSL.WantReadError:
            self._listening[descriptor] = listening
            self._send_cookie(sock, source, _pending(listening))
            return
        except SSL.Error as error:
            self.counters.count("turn_dtls_failed")
            logger.debug("turn, %s: DTLS: %s", Address(*source), error)
            return
        self._begin(key, sock, listening)

    def _send_cookie(self, sock: socket.socket, source: SocketAddress, answer: bytes) -> None:
        if not answer:
            self.counters.count("turn_garbage_dropped")
            return
        if not self.relay.server.take_unauthenticated(source[0], len(answer), now()):
            return
        try:
            sock.sendto(answer, source)
        except OSError:
            self.counters.count("turn_send_failed")

    def _begin(self, key: tuple[int, SocketAddress], sock: socket.socket, connection: Any) -> None:
        address = Address(*key[1])
        old = self._open.get(key)
        if old is not None:
            old.end()
        if not self._guard.open():
            self.counters.count("listener_dropped_connections")
            return
        if self._guard.overloaded or not self._guard.claim(address.host):
            self._guard.close()
            self.counters.count("listener_dropped_address")
            return
        association = Association(self, connection, sock, address)
        self._open[key] = association
        self._key_of[association] = key
        if self._guard.crowded(address.host):
            self.counters.count("turn_streams_refused")
            association.end()
            return
        self._watch(association, CHECK_SECONDS)
        association.advance()

    def _watch(self, association: Association, seconds: float) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (now() + seconds, self._serial, association))
        self._loop_timer.arm(self._timers[0][0])

    def _tick(self) -> None:
        """Runs in the hub."""
        timers, at = self._timers, now()
        while timers and timers[0][0] <= at:
            _, _, association = heapq.heappop(timers)
            seconds = association.handle_timer()
            if seconds is not None:
                self._watch(association, seconds)
        self._loop_timer.arm(timers[0][0] if timers else None)

    def _new_context(self, certificate: str, private_key: str) -> SSL.Context:
        context = SSL.Context(SSL.DTLS_SERVER_METHOD)
        context.set_min_proto_version(_DTLS_1_2)
        # The records of 1.3 have another head, and its cookie another message; `dtls_records` knows neither.
        context.set_max_proto_version(_DTLS_1_2)
        context.set_options(_OPTIONS)
        context.set_cipher_list(_CIPHERS)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_cookie_generate_callback(lambda _: self._cookie(0))
        context.set_cookie_verify_callback(lambda _, cookie: self._is_cookie(bytes(cookie)))
        context.set_alpn_select_callback(_alpn)
        try:
            with open(certificate, "rb") as file:
                own, *chain = x509.load_pem_x509_certificates(file.read())
            with open(private_key, "rb") as file:
                key: Any = load_pem_private_key(file.read(), None)
            context.use_certificate(own)
            for one in chain:
                context.add_extra_chain_cert(one)
            context.use_privatekey(key)
            context.check_privatekey()
        except (SSL.Error, OSError, ValueError, TypeError):
            raise StartError(
                f"cannot use the certificate and key in {certificate} and {private_key} for DTLS"
            ) from None
        return context

    def _cookie(self, age: int) -> bytes:
        """The cookie for who is asking now, or that of `age` periods ago."""
        period = int(now() // COOKIE_SECONDS) - age
        return hmac.digest(self._cookie_key, b"%d %s" % (period, self._asking), "sha256")

    def _is_cookie(self, cookie: bytes) -> bool:
        return sum(hmac.compare_digest(cookie, self._cookie(age)) for age in (0, 1)) > 0


def _alpn(_connection: object, protocols: list[bytes]) -> Any:
    """What clients of TURN ask for (RFC 7443); whoever asks for something else gets none."""
    offered = [name.encode() for name in ALPN_TURN if name.encode() in protocols]
    return offered[0] if offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _pending(connection: Any) -> bytes:
    """What OpenSSL has written."""
    parts = []
    while True:
        try:
            parts.append(connection.bio_read(65536))
        except SSL.WantReadError:
            return b"".join(parts)
