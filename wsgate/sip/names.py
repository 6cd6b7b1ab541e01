"""What is ours: the hosts and ports by which wsgate is known, and what it writes of itself (spec: "Ours", V1). Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from wsgate.addr import Address, Hop, Transport, canonical_host, split_host_port
from wsgate.sip.flow import Flow
from wsgate.sip.headers import Uri, host_port

OWN_CONNECTIONS = 4096
"""Local addresses of WebSocket connections to backends that are remembered as ours."""

OWN_ADDRESSES_WRITTEN = 256
"""Of the addresses that we call ourselves by, how many are kept as they are written."""

_URI_WORDS = {
    Transport.UDP: b"",
    Transport.TCP: b";transport=tcp",
    Transport.TLS: b";transport=tls",
    Transport.WS: b";transport=ws",
    Transport.WSS: b";transport=ws",
}


class Names:
    """The addresses that are wsgate: configured ones, listeners, and the near ends of connections to backends.

    `advertise` are those of the UDP and TCP ports, `advertise_tls` those of the TLS ports (none: no server can open a
    TLS connection to us).
    """

    def __init__(
        self,
        *,
        advertise: Iterable[Address],
        public: Address,
        advertise_tls: Iterable[Address] = (),
        aliases: Iterable[str] = (),
        listeners: Iterable[Address] = (),
        first: Mapping[Address, Address] = MappingProxyType({}),
    ) -> None:
        """`first` is for each advertised address that of the first worker, where this is another one (rule R5)."""
        self._first = dict(first)
        self.public = public
        self._advertised = {":" in address.host: address for address in reversed(list(advertise))}
        self._advertised_tls = {":" in address.host: address for address in reversed(list(advertise_tls))}
        self._exact = {public, *self._advertised.values(), *self._advertised_tls.values(), *listeners}
        self._bare: set[str] = set()
        for alias in aliases:
            address = split_host_port(alias, 0)
            if address.port:
                self._exact.add(address)
            else:
                self._bare.add(address.host)
        self._connections: OrderedDict[Address, None] = OrderedDict()

    def connected(self, local: Address) -> None:
        """The near end of a connection that names us towards a backend is ours from now on (V1)."""
        self._connections[local] = None
        self._connections.move_to_end(local)
        while len(self._connections) > OWN_CONNECTIONS:
            self._connections.popitem(last=False)

    def of_first_worker(self, address: Address) -> Address:
        """What stands in a rewritten Contact for this address of ours: the same, whoever wrote it (rule R5)."""
        return self._first.get(address, address)

    def is_ours(self, uri: Uri, flow: Flow | None = None) -> bool:
        """True when host and port of `uri` are wsgate, for the connection `flow` also its Host of the upgrade.

        A port that is left out equals the default of the scheme and transport; for `transport=ws` both 80 and 443,
        because that word stands for WebSocket with and without TLS (RFC 7118 §5.2.2).
        """
        ports = (uri.port,) if uri.port is not None else _default_ports(uri)
        addresses = [Address(uri.host, port) for port in ports]
        if any(address in self._exact or address in self._connections for address in addresses):
            return True
        if flow is not None and flow.host in addresses:
            return True
        return uri.host in self._bare and bool(set(ports) & set(_default_ports(uri)))

    def known_as(self) -> set[Address]:
        """Every address by which wsgate is known from the configuration; an alias without port on 443, 80 and 5060.

        A company's SIP+D2W record may point here, also by the name of the relay in front (rule N1).
        """
        return self._exact | {Address(host, port) for host in self._bare for port in (443, 80, 5060)}

    def is_own_address(self, address: Address) -> bool:
        """True when a packet to `address` would come back to wsgate itself."""
        return address in self._exact or address in self._connections

    def by_connection(self, transport: Transport) -> bool:
        """True where a backend can reach us only by the connection that we opened, so that its near end names us.

        So it is for WebSockets (V1), and for TLS where no TLS port is open: a server that knows our requests by that
        address sends its own down the same connection (RFC 3261 §18.1.1, RFC 5923).
        """
        return transport.is_websocket or (transport is Transport.TLS and not self._advertised_tls)

    def sent_by(self, hop: Hop, local: Address | None = None) -> Address:
        """The host and port of a Via, Path or Record-Route towards `hop`.

        Towards browsers the public name, towards a backend by WebSocket the near end `local` of that connection (V1),
        else the advertised address of the hop's family and transport.
        """
        if local is not None and self.by_connection(hop.transport):
            return local
        if hop.transport.is_websocket:
            return self.public
        advertised = self._advertised
        if hop.transport is Transport.TLS and self._advertised_tls:
            advertised = self._advertised_tls
        return advertised.get(":" in hop.address.host) or next(iter(advertised.values()), self.public)


def _default_ports(uri: Uri) -> tuple[int, ...]:
    transport = uri.transport
    if transport is not None and transport.is_websocket:
        return (80, 443)
    if transport is not None and uri.scheme == b"sip":
        return (transport.default_port,)
    return (5061,) if uri.scheme == b"sips" else (5060,)


@lru_cache(OWN_ADDRESSES_WRITTEN)
def _written(address: Address) -> bytes:
    """An address of ours as it stands in a URI or Via."""
    return host_port(canonical_host(address.host), address.port)


def via_value(hop: Hop, sent_by: Address, branch: bytes) -> bytes:
    """Our Via towards `hop`; `rport` is asked for where answers go by address (RFC 3581, V1)."""
    streamless = b"" if hop.transport.is_websocket else b";rport"
    return b"SIP/2.0/%b %b;branch=%b%b" % (hop.transport.word, _written(sent_by), branch, streamless)


def side_uri(token: bytes, transport: Transport, address: Address, *parameters: bytes) -> bytes:
    """`<sip:TOKEN@HOST:PORT[;transport=..];lr...>` for Path and Record-Route: always `sip:`, WSS written as ws (C2)."""
    return b"<sip:%b@%b%b;%b>" % (token, _written(address), _URI_WORDS[transport], b";".join(parameters))
