"""TCP ports: accept, guard, PROXY, first byte, TLS and ALPN; then whoever serves what is spoken."""

from __future__ import annotations

import enum
import errno
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gevent
from gevent import get_hub, ssl
from gevent.pool import Group
from gevent.socket import socket as gevent_socket

from wsgate.addr import Address, Network, canonical_host, in_networks
from wsgate.errors import ProtocolError
from wsgate.guard import Guard
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net import forwarded
from wsgate.net.clock import now
from wsgate.net.tls import ALPN_TURN
from wsgate.net.upgrade import Accepted, HeadTimeout
from wsgate.settings import Switch

ACCEPTS_PER_TURN = 64
"""Connections accepted before the others get their turn."""

EXHAUSTED_PAUSE = 0.1
"""Seconds until the next accept where not even a refusal was possible."""

EXHAUSTED_LOG_INTERVAL = 60.0
"""Seconds without trouble after which running out of descriptors is news again (rule H7: one log line)."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_CLOSED = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})


class Speech(enum.Enum):
    """What the first byte of a connection says it speaks (DESIGN, Ports)."""

    STUN = "STUN"
    TLS = "TLS"
    HTTP = "HTTP"


FIRST_BYTES = (
    (range(0x00, 0x04), Speech.STUN),  # RFC 7983
    (range(0x16, 0x17), Speech.TLS),  # RFC 8446 §5.1, handshake
    (range(0x41, 0x5B), Speech.HTTP),  # the initial of a method
)

SPEECH = {byte: speech for bytes_, speech in FIRST_BYTES for byte in bytes_}

Row = Callable[[Accepted], None]
"""What serves one kind of speech."""


class PortSettings(NamedTuple):
    """What may change between two connections (reload). `trusted_proxies` are relays, who stand for many."""

    tls: Switch = Switch.OFF
    trusted_proxies: tuple[Network, ...] = ()
    tls_at_relay: bool = False
    proxy_protocol: bool = False
    handshake_timeout: float = 5.0


class Port:
    """All sockets of one [listener NAME], or of one option of [turn], in one worker.

    `rows` serve what is spoken in the clear or within TLS; what is not among them is closed and counted.
    """

    def __init__(
        self,
        name: str,
        sockets: list[socket.socket],
        settings: Callable[[], PortSettings],
        tls_context_provider: Callable[[], ssl.SSLContext] | None,
        guard: Guard,
        counters: Counters,
        rows: Mapping[Speech, Row],
        *,
        stun_in_clear: bool = False,
    ) -> None:
        """`sockets` are bound and listen already; `tls_context_provider` gives the context for the next connection.

        With `stun_in_clear` TURN over TCP is served beside TLS where `tls` is on (rule E1: one port for all).
        """
        self.name = name
        self.serving = Group()
        self._sockets = sockets
        self._settings = settings
        self._tls_context_provider = tls_context_provider
        self._guard = guard
        self._counters = counters
        self._acceptors: list[gevent.Greenlet] = []
        self._spare: int | None = None
        self._exhausted_at = -EXHAUSTED_LOG_INTERVAL
        # What can be spoken before TLS, by the option `tls`, and within it.
        self._clear: dict[Speech, Row] = {Speech.STUN: self._refuse, **rows}
        self._rows: dict[Switch, dict[Speech, Row]] = {
            Switch.OFF: self._clear,
            Switch.ON: {Speech.TLS: self._speak_tls},
            Switch.AUTO: {Speech.TLS: self._speak_tls, **self._clear},
        }
        if stun_in_clear:
            self._rows[Switch.ON][Speech.STUN] = self._clear[Speech.STUN]

    def start(self) -> None:
        """Accept connections from now on."""
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for listening in self._sockets:
            listening.setblocking(False)
            self._acceptors.append(gevent.spawn(self._accept, listening))

    def stop_accepting(self) -> None:
        """Close the sockets; what is connected stays."""
        gevent.killall(self._acceptors)
        self._acceptors.clear()
        for listening in self._sockets:
            listening.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _accept(self, listening: socket.socket) -> None:
        watcher = get_hub().loop.io(listening.fileno(), 1)
        try:
            while True:
                get_hub().wait(watcher)
                for _ in range(ACCEPTS_PER_TURN):
                    if not self._accept_one(listening):
                        break
        except OSError as error:
            logger.error("listener %s: cannot accept any more: %s", self.name, error)
        finally:
            watcher.close()

    def _accept_one(self, listening: socket.socket) -> bool:
        """Accept one connection; False: there is none just now. Raises OSError when the port is gone."""
        try:
            sock, address = listening.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _CLOSED:
                raise
            if error.errno in _EXHAUSTED:
                self._refuse_exhausted(listening, error)
                return False
            # The peer gave up before it was accepted, or a firewall forbade it.
            self._counters.count("listener_accept_failed")
            return True
        if not self._guard.open():
            self._counters.count("listener_dropped_connections")
            sock.close()
            return True
        self.serving.spawn(self._serve, sock, address)
        return True

    def _refuse_exhausted(self, listening: socket.socket, error: OSError) -> None:
        """Rule H7: no descriptor is left. The spare one makes room to accept, and thereby refuse, one connection."""
        if now() - self._exhausted_at >= EXHAUSTED_LOG_INTERVAL:
            logger.error("listener %s refuses connections: %s", self.name, error.strerror)
        self._exhausted_at = now()
        self._counters.count("listener_refused_no_descriptors")
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        try:
            listening.accept()[0].close()
        except OSError:
            gevent.sleep(EXHAUSTED_PAUSE)
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            gevent.sleep(EXHAUSTED_PAUSE)

    def _serve(self, raw: socket.socket, address: tuple[Any, ...]) -> None:
        """One connection until it is over or somebody took its socket, in its own greenlet."""
        settings = self._settings()
        peer = Address(canonical_host(address[0]), address[1])
        sock = gevent_socket(raw.family, raw.type, raw.proto, fileno=raw.detach())
        accepted = Accepted(sock, peer, settings.trusted_proxies, settings.tls_at_relay)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.limit(settings.handshake_timeout)
            self._greet(accepted, settings)
        except HeadTimeout:
            self._counters.count("listener_timeouts")
        except ProtocolError as error:
            self._counters.count("listener_malformed")
            logger.debug("listener %s, %s: %s", self.name, peer, error)
        except OSError as error:
            self._counters.count("listener_broken")
            logger.debug("listener %s, %s: %s", self.name, peer, error)
        finally:
            accepted.limit(None)
            if accepted.socket is not None:
                accepted.socket.close()
                if accepted.claim:
                    self._guard.release(accepted.claim)
                self._guard.close()

    def _greet(self, accepted: Accepted, settings: PortSettings) -> None:
        if settings.proxy_protocol and in_networks(accepted.peer.host, settings.trusted_proxies):
            source = _read_proxy(accepted.socket)
            if source is not None:
                accepted.peer = source
        if not in_networks(accepted.peer.host, settings.trusted_proxies):
            # A relay stands for many: the place of each is claimed when the head says who it is.
            if not self._guard.claim(accepted.peer.host):
                self._counters.count("listener_dropped_address")
                return
            accepted.claim = accepted.peer.host
        self._speak(accepted, self._rows[settings.tls], accepted.socket.recv(1, socket.MSG_PEEK))

    def _speak(self, accepted: Accepted, rows: Mapping[Speech, Row], first: bytes) -> None:
        speech = SPEECH.get(first[0]) if first else None
        row = rows.get(speech) if speech else None
        if row is not None:
            row(accepted)
        elif first:
            self._counters.count("listener_unknown_first_byte")

    def _refuse(self, accepted: Accepted) -> None:
        """STUN where no TURN is spoken."""
        self._counters.count("listener_refused_stun")

    def _speak_tls(self, accepted: Accepted) -> None:
        if self._tls_context_provider is None:
            self._counters.count("listener_tls_without_certificate")
            return
        if not self._guard.begin_tls():
            self._counters.count("listener_dropped_tls")
            return
        try:
            accepted.socket = self._tls_context_provider().wrap_socket(
                accepted.socket, server_side=True, do_handshake_on_connect=False
            )
            accepted.socket.do_handshake()
        except ssl.SSLError as error:
            self._counters.count("listener_tls_failed")
            logger.debug("listener %s, %s: TLS: %s", self.name, accepted.peer, error)
            return
        finally:
            self._guard.end_tls()
        accepted.secure = True
        accepted.renew_head()
        rows = self._clear
        if accepted.socket.selected_alpn_protocol() in ALPN_TURN:
            # Who asked for TURN gets nothing else (RFC 7443 §3; rule E1).
            rows = {Speech.STUN: self._clear[Speech.STUN]}
        self._speak(accepted, rows, accepted.head.peek())


def _read_proxy(sock: Any) -> Address | None:
    """Read a PROXY header off the socket and not a byte more (TLS may follow); the source, None for LOCAL.

    Raises ProtocolError.
    """
    start = _read_exactly(sock, forwarded.PROXY_START_BYTES)
    if forwarded.PROXY_V2_SIGNATURE.startswith(start):
        head = start + _read_exactly(sock, forwarded.PROXY_V2_HEAD_BYTES - len(start))
        return forwarded.proxy_v2(head, _read_exactly(sock, forwarded.proxy_v2_body_bytes(head)))
    line = start
    while not line.endswith(b"\n"):
        left = forwarded.PROXY_V1_MAX_BYTES - len(line)
        if not line.startswith(b"PROXY ") or left <= 0:
            raise ProtocolError("malformed PROXY header")
        seen = sock.recv(left, socket.MSG_PEEK)
        line += _read_exactly(sock, seen.find(b"\n") + 1 or max(1, len(seen)))
    return forwarded.proxy_v1(line)


def _read_exactly(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ProtocolError("the PROXY header ends early")
        data += more
    return data
