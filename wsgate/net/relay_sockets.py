"""The UDP sockets of the relay engine: those that clients send to and the relayed addresses (rules P3, P4, F4).

A packet costs one look-up and one send: it is read into the one buffer of the engine, those of peers HEADROOM bytes
into it, and leaves from there. What is neither ChannelData nor for a known channel the engine handles.
"""

from __future__ import annotations

import socket
import struct
from typing import Protocol

from wsgate.addr import Address
from wsgate.metrics import Counters
from wsgate.net.metering import Send
from wsgate.net.packet_loop import PacketLoop
from wsgate.turn.effects import Client
from wsgate.turn.server import TurnServer
from wsgate.turn.values import Icmp

HEADROOM = 48
"""The longest that is written before a payload: a Data indication with an IPv6 peer."""
DATAGRAM_BYTES = 65536
RELAY_BUFFER_BYTES = 512 << 10

IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_WANT, IP_PMTUDISC_DO = 10, 0, 1, 2
IPV6_MTU_DISCOVER = 23
IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE = 11, 25, 0x2000
ERRORS_PER_READ = 16
"""ICMP errors of one socket that are read before the others get their turn."""
_ICMP_TOLD = {
    2: {3: "IPv4 unreachable", 11: "IPv4 time exceeded"},
    3: {1: "unreachable", 2: "too big", 3: "time exceeded"},
}
"""Which messages of which origin (SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6) clients are told (RFC 8656 §11.5)."""
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_CHANNEL_HEAD = struct.Struct("!HH")

SocketAddress = tuple[str, int]


class Buffer:
    """The one buffer of an engine and the views into it that never change."""

    def __init__(self) -> None:
        self.data = bytearray(HEADROOM + DATAGRAM_BYTES + 4)
        self.view = memoryview(self.data)
        self.payload = self.view[HEADROOM : HEADROOM + DATAGRAM_BYTES]


Routes = dict[SocketAddress, dict[int, tuple[Send, SocketAddress]]]
"""client -> channel number -> (send, peer)"""


class Path(Protocol):
    """One way to clients: a socket that many send to, or a stream or DTLS association of one."""

    path: int
    """Its number in Client.path, given by the engine and never used again."""
    routes: Routes

    @property
    def sendto(self) -> Send:
        """Media to a client: whole or not at all. Never blocks; raises OSError for what was dropped."""

    def answer(self, data: bytes, address: SocketAddress, /) -> None:
        """A STUN answer to a client. Never blocks; raises OSError."""


class Engine(Protocol):
    """What sockets need of the engine that reads them."""

    server: TurnServer
    counters: Counters
    buffer: Buffer
    loop: PacketLoop
    to_peers: int
    to_clients: int
    """Packets relayed that are not counted yet."""

    def message(self, listener: ClientSocket, source: SocketAddress, size: int) -> None:
        """A datagram in the buffer that is no ChannelData."""

    def send_again(self, problem: OSError, channel: tuple[Send, SocketAddress], payload: bytes | memoryview) -> int:
        """A send failed; returns how many packets went out after all."""

    def write_data_indication(self, source: SocketAddress, size: int) -> tuple[int, int]:
        """Make the payload in the buffer a Data indication; returns where it begins and ends."""

    def tell_icmp(self, client: Client, peer: SocketAddress, icmp: Icmp) -> None:
        """A Data indication with the ICMP attribute."""


class ClientSocket:
    """A socket that clients send to."""

    def __init__(self, engine: Engine, path: int, sock: socket.socket) -> None:
        self.socket = sock
        self.path = path
        self.routes: Routes = {}
        self.sendto: Send = sock.sendto
        self._engine = engine
        self._long_address = sock.family == socket.AF_INET6
        self._first_byte_end = (engine.server.channel_numbers[-1] >> 8) + 1

    def answer(self, data: bytes, address: SocketAddress, /) -> None:
        """Raises OSError."""
        self.socket.sendto(data, address)

    def read_errors(self) -> None:
        """Nobody is told what ICMP says of a client."""
        self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def read(self, limit: int) -> int:
        """Take up to `limit` datagrams; returns how many. One that is wrong harms no other (rules P3, F4)."""
        engine, routes, long_address = self._engine, self.routes, self._long_address
        data, view, receive = engine.buffer.data, engine.buffer.view, self.socket.recvfrom_into
        first_byte_end = self._first_byte_end
        limit = max(limit, engine.loop.ready)  # as many clients send here as peers to all the relay sockets
        relayed = taken = 0
        while taken < limit:
            try:
                size, source = receive(data)
            except BlockingIOError:
                break
            except OSError:
                taken += 1
                engine.counters.count("turn_socket_errors")
                continue
            taken += 1
            if long_address:
                source = source[:2]
            if size < 4 or not 0x40 <= data[0] < first_byte_end:
                engine.message(self, source, size)
                continue
            route = routes.get(source)
            channel = route and route.get(data[0] << 8 | data[1])
            end = 4 + (data[2] << 8 | data[3])
            if not channel or end > size:
                engine.counters.count("turn_channel_data_dropped")
                continue
            try:
                channel[0](view[4:end], channel[1])
                relayed += 1
            except OSError as problem:
                relayed += engine.send_again(problem, channel, view[4:end])
        engine.to_peers += relayed
        return taken


class RelaySocket:
    """A relayed transport address; what arrives goes to the client it is joined to, or nowhere."""

    __slots__ = ("_engine", "_long_address", "_receive", "channels", "client", "permitted", "reply", "sendto", "socket")

    def __init__(self, engine: Engine, address: Address, sock: socket.socket) -> None:
        self._engine = engine
        self._long_address = ":" in address.host
        self._receive = sock.recvfrom_into
        self.socket = sock
        self.sendto: Send = sock.sendto
        self.client: Client | None = None
        self.reply: Send | None = None
        self.permitted: set[str] = set()
        self.channels: dict[SocketAddress, int] = {}

    def read(self, limit: int) -> int:
        """Take up to `limit` datagrams of peers; returns how many (rules P3, F4)."""
        engine, channels, permitted, reply = self._engine, self.channels, self.permitted, self.reply
        buffer, receive = engine.buffer, self._receive
        data, view, payload = buffer.data, buffer.view, buffer.payload
        client = None if self.client is None else self.client.address
        long_address = self._long_address
        relayed = taken = 0
        while taken < limit:
            try:
                size, source = receive(payload)
            except BlockingIOError:
                break
            except OSError:
                taken += 1
                engine.counters.count("turn_socket_errors")
                continue
            taken += 1
            if long_address:
                source = source[:2]
            if reply is None or client is None or source[0] not in permitted:
                engine.counters.count("turn_peer_data_dropped")
                continue
            number = channels.get(source)
            if number is not None:
                _CHANNEL_HEAD.pack_into(data, HEADROOM - 4, number, size)
                start, end = HEADROOM - 4, HEADROOM + size
            else:
                start, end = engine.write_data_indication(source, size)
            try:
                if start < end:
                    reply(view[start:end], client)
                    relayed += 1
            except OSError:
                engine.counters.count("turn_send_failed")
        engine.to_clients += relayed
        return taken

    def read_errors(self) -> None:
        """Tell the client what ICMP said of its packets to peers that it may reach (RFC 8656 §11.5; rule P4)."""
        engine = self._engine
        for _ in range(ERRORS_PER_READ):
            try:
                _, ancillary, _, source = self.socket.recvmsg(0, 256, MSG_ERRQUEUE)
            except OSError:
                return
            peer = source[:2] if source else ("", 0)
            for _, _, data in ancillary:
                if len(data) < _EXTENDED_ERROR.size or self.client is None or peer[0] not in self.permitted:
                    continue
                _, origin, kind, code, _, info, _ = _EXTENDED_ERROR.unpack_from(data)
                if kind in _ICMP_TOLD.get(origin, ()):
                    engine.tell_icmp(self.client, peer, Icmp(kind, code, info))

    def set_dont_fragment(self, on: bool) -> None:
        """Whether packets leave with DF set (DONT-FRAGMENT, RFC 8656 §18.9). Raises OSError."""
        if not on:
            may_be_fragmented(self.socket)
        elif self._long_address:
            self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)


def may_be_fragmented(sock: socket.socket) -> None:
    """Packets leave without DF: whose application data it is was not asked (RFC 8656 §14, alternate behavior).

    The kernel would set DF and keep a path's MTU; where ICMP is filtered, what is longer then vanishes. IPv6 knows no
    fragments on the way: its kernel makes them here, as long as the path wants them.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_WANT)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)


def bound(address: Address) -> socket.socket:
    """A relay socket at `address`. Raises OSError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RELAY_BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        may_be_fragmented(sock)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
