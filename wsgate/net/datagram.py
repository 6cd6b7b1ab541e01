"""A bound UDP socket: drains what is readable in fair turns, sends without blocking, hears ICMP errors (rule N2)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

import gevent
from gevent import get_hub

from wsgate.addr import Address, canonical_host
from wsgate.log import logger
from wsgate.metrics import Counters

DATAGRAMS_PER_TURN = 64
"""How many datagrams one socket reads before all others get their turn."""
MAX_DATAGRAM_BYTES = 65535
RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
"""Asked of the kernel, which may grant less: room for a burst while the worker is busy."""

_READ = 1
# From linux/in.h, linux/in6.h: the socket module does not name them.
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_ERROR_LEVELS = {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
# struct sock_extended_err: errno, origin, type, code, pad, info, data.
_EXTENDED_ERROR = struct.Struct("=IBBBBII")


class DatagramSocket:
    """Takes over the bound socket `plain`. Begins to read at `start`.

    `received(data, source)` gets every datagram; `unreachable(destination, reason)` every ICMP error and refused send.
    Both are called from greenlets of this socket, never from inside `send`. What they raise is logged and costs
    nothing else.
    """

    def __init__(
        self,
        plain: socket.socket,
        received: Callable[[bytes, Address], None],
        unreachable: Callable[[Address, str], None],
        counters: Counters,
    ) -> None:
        self.family = plain.family
        self.local = Address(*plain.getsockname()[:2])
        plain.setblocking(False)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if self.family == socket.AF_INET6:
            plain.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            self.takes_ipv4 = not plain.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        else:
            self.takes_ipv4 = True
        if self.takes_ipv4:
            plain.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        self._plain = plain
        self._received = received
        self._unreachable = unreachable
        self._counters = counters
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin to read."""
        self._greenlet = gevent.spawn(self._read)

    def close(self) -> None:
        """Stop reading and close the socket."""
        if self._greenlet is not None:
            self._greenlet.kill()
        self._plain.close()

    def reaches(self, host: str) -> bool:
        """True when this socket can send to the numeric `host`."""
        return self.family == socket.AF_INET6 if ":" in host else self.takes_ipv4

    def send(self, data: bytes, destination: Address) -> None:
        """Send one datagram. Never blocks: a full buffer is a loss, counted."""
        host, port = destination
        if self.family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        try:
            self._plain.sendto(data, (host, port))
            return
        except BlockingIOError:
            self._counters.count("sip_udp_send_full")
            return
        except OSError:
            # It may be the ICMP error of an earlier datagram to anybody: that is taken away, and tried once more.
            self._take_errors()
        try:
            self._plain.sendto(data, (host, port))
        except BlockingIOError:
            self._counters.count("sip_udp_send_full")
        except OSError as error:
            self._report(destination, os.strerror(error.errno or errno.EIO))

    def _read(self) -> None:
        hub = get_hub()
        watcher = hub.loop.io(self._plain.fileno(), _READ)
        buffer = bytearray(MAX_DATAGRAM_BYTES)
        view = memoryview(buffer)
        try:
            while True:
                hub.wait(watcher)
                if self._drain(buffer, view):
                    gevent.sleep(0)
        finally:
            watcher.stop()
            watcher.close()

    def _drain(self, buffer: bytearray, view: memoryview) -> bool:
        """Read what is there; True when there may be more."""
        for turn in range(DATAGRAMS_PER_TURN):
            try:
                size, source = self._plain.recvfrom_into(buffer)
            except BlockingIOError:
                if not turn:
                    # Woken for nothing: an error waits, which would wake us again and again.
                    self._take_errors()
                return False
            except OSError:
                self._take_errors()
                continue
            address = Address(source[0] if self.family == socket.AF_INET else canonical_host(source[0]), source[1])
            try:
                self._received(bytes(view[:size]), address)
            except Exception:
                logger.exception("internal error on a datagram of %s", address)
                self._counters.count("internal_errors")
        return True

    def _take_errors(self) -> None:
        """Empty the queue of ICMP errors (ip(7), IP_RECVERR); each names the destination of its datagram."""
        failures: dict[Address, int] = {}
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                _, ancillary, _, destination = self._plain.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            except OSError:
                break
            for level, kind, body in ancillary:
                if (level, kind) in _ERROR_LEVELS and len(body) >= _EXTENDED_ERROR.size and destination:
                    number = _EXTENDED_ERROR.unpack_from(body)[0]
                    if number != errno.EMSGSIZE:  # the kernel has learnt the path's size and fragments from now on
                        failures[Address(canonical_host(destination[0]), destination[1])] = number
        for address, number in failures.items():
            self._report(address, os.strerror(number))

    def _report(self, destination: Address, reason: str) -> None:
        self._counters.count("sip_udp_unreachable")
        gevent.spawn(self._unreachable, destination, reason)
