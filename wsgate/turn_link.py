"""Blocking sockets towards a STUN or TURN server, for `wsgate turn-test`: UDP, TCP, TLS and DTLS (rule E1)."""

from __future__ import annotations

import ipaddress
import os
import select
import socket
import ssl
import time
from typing import Any, NamedTuple, Protocol

from cryptography import x509

from wsgate.addr import is_numeric
from wsgate.errors import ProtocolError, WsgateError
from wsgate.turn.framing import Frames
from wsgate.turn.uri import TurnUri

DATAGRAM_BYTES = 65536
ALPN = ("stun.turn", "stun.nat-discovery")
"""RFC 7443."""


class LinkError(WsgateError):
    """The server cannot be reached, or hung up; `certificate` where it is reached but not trusted."""

    def __init__(self, reason: str, *, certificate: bool = False) -> None:
        super().__init__(reason)
        self.certificate = certificate


class Trust(NamedTuple):
    """How a certificate is judged: by `ca_file` (empty: the system's), for the host of the URI, or not at all."""

    ca_file: str = ""
    insecure: bool = False


class Link(Protocol):
    """One 5-tuple to a server. Every method raises LinkError."""

    reliable: bool
    described: str
    """The transport in words."""

    def send(self, data: bytes) -> None:
        """Send one message."""

    def receive(self, seconds: float) -> list[bytes]:
        """The messages that come within `seconds`, none when nothing came."""

    def close(self) -> None:
        """Hang up."""


class _DatagramLink:
    """UDP."""

    reliable = False

    def __init__(self, sock: socket.socket) -> None:
        self.described = "UDP"
        self._socket = sock

    def send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise LinkError(_spoken(error)) from None

    def receive(self, seconds: float) -> list[bytes]:
        self._socket.settimeout(max(seconds, 0.001))
        try:
            return [self._socket.recv(DATAGRAM_BYTES)]
        except TimeoutError:
            return []
        except OSError as error:
            raise LinkError(_spoken(error)) from None

    def close(self) -> None:
        self._socket.close()


class _StreamLink:
    """TCP, or TLS over it."""

    reliable = True

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.described = "TCP"
        if isinstance(sock, ssl.SSLSocket):
            alpn = sock.selected_alpn_protocol()
            self.described = f"TCP, {sock.version()}" + (f", ALPN {alpn}" if alpn else "")
        self._socket = sock
        self._seconds = seconds
        self._frames = Frames()

    def send(self, data: bytes) -> None:
        self._socket.settimeout(self._seconds)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise LinkError(_spoken(error)) from None

    def receive(self, seconds: float) -> list[bytes]:
        self._socket.settimeout(max(seconds, 0.001))
        try:
            data = self._socket.recv(DATAGRAM_BYTES)
            if not data:
                raise LinkError("the server closed the connection")
            return self._frames.receive(data, time.monotonic())
        except TimeoutError:
            return []
        except OSError as error:
            raise LinkError(_spoken(error)) from None
        except ProtocolError as error:
            raise LinkError(f"what answers there speaks no TURN: {error.reason}") from None

    def close(self) -> None:
        self._socket.close()


class _DtlsLink:
    """DTLS over UDP (RFC 7350) by pyOpenSSL."""

    reliable = False

    def __init__(self, sock: socket.socket, host: str, trust: Trust, seconds: float) -> None:
        from OpenSSL import SSL

        self._wait = (SSL.WantReadError, SSL.WantWriteError)
        self._broken = (SSL.Error, OSError)
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        if not trust.insecure:
            context.set_verify(SSL.VERIFY_PEER)
            if trust.ca_file:
                context.load_verify_locations(trust.ca_file)
            else:
                context.set_default_verify_paths()
        context.set_alpn_protos([name.encode() for name in ALPN])
        sock.setblocking(False)
        self._socket = sock
        self._connection: Any = SSL.Connection(context, sock)
        self._connection.set_ciphertext_mtu(1200)
        if not is_numeric(host):
            self._connection.set_tlsext_host_name(host.encode())
        self._connection.set_connect_state()
        self._shake_hands(seconds)
        shown = self._connection.get_peer_certificate()
        if not trust.insecure and (shown is None or not _is_named(shown.to_cryptography(), host)):
            raise LinkError(f"the certificate is not for {host}", certificate=True)
        self.described = f"UDP, {self._connection.get_protocol_version_name()}"

    def _shake_hands(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._connection.do_handshake()  # type: ignore[no-any-return]
            except self._wait:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LinkError(f"no answer to the DTLS handshake in {seconds:g} s") from None
                again = self._connection.DTLSv1_get_timeout()
                select.select([self._socket], [], [], left if again is None else min(again, left))
                self._connection.DTLSv1_handle_timeout()
            except self._broken as error:
                words = _spoken_by_openssl(error)
                raise LinkError(f"the DTLS handshake failed: {words}", certificate="certificate" in words) from None

    def send(self, data: bytes) -> None:
        try:
            self._connection.send(data)
        except self._broken as error:
            raise LinkError(f"DTLS: {_spoken_by_openssl(error)}") from None

    def receive(self, seconds: float) -> list[bytes]:
        select.select([self._socket], [], [], max(seconds, 0.001))
        try:
            return [self._connection.recv(DATAGRAM_BYTES)]
        except self._wait:
            return []
        except self._broken as error:
            raise LinkError(f"the server closed the association: {_spoken_by_openssl(error)}") from None

    def close(self) -> None:
        self._socket.close()


def connect(uri: TurnUri, trust: Trust, seconds: float) -> tuple[Link, str]:
    """A new 5-tuple to the server and the address it was reached at; each address of a name is tried.

    Raises LinkError that tells why the last one failed.
    """
    kind = socket.SOCK_DGRAM if uri.transport == "udp" else socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(uri.host, uri.port, type=kind)
    except (OSError, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise LinkError(f"the name {uri.host} is not known: {words}") from None
    problem = LinkError(f"the name {uri.host} has no address")
    for family, _, _, _, address in found:
        sock = socket.socket(family, kind)
        sock.settimeout(seconds)
        try:
            sock.connect(address)
            return _spoken_over(sock, uri, trust, seconds), str(address[0])
        except ssl.SSLCertVerificationError as error:
            problem = LinkError(f"the certificate is not good: {error.verify_message}", certificate=True)
        except OSError as error:
            problem = LinkError(_spoken(error))
        except LinkError as error:
            problem = error
        sock.close()
    raise problem


def _spoken_over(sock: socket.socket, uri: TurnUri, trust: Trust, seconds: float) -> Link:
    """The link on a connected socket. Raises OSError (of which SSLError is one) and LinkError."""
    if uri.transport == "udp":
        return _DtlsLink(sock, uri.host, trust, seconds) if uri.secure else _DatagramLink(sock)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not uri.secure:
        return _StreamLink(sock, seconds)
    context = ssl.create_default_context(cafile=trust.ca_file or None)
    if trust.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(ALPN))
    return _StreamLink(context.wrap_socket(sock, server_hostname=uri.host), seconds)


def _is_named(certificate: x509.Certificate, host: str) -> bool:
    """True when the certificate is for `host`: an IP address, or a name, which may be one label of a wildcard."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    if is_numeric(host):
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    dns = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return host in dns or f"*.{host.partition('.')[2]}" in dns


def _spoken_by_openssl(error: Exception) -> str:
    """The reason of an error of pyOpenSSL, which carries a list of (library, function, reason)."""
    if isinstance(error, OSError):
        return _spoken(error)
    if error.args and isinstance(error.args[0], int) and error.args[0] > 0:
        return _spoken(OSError(error.args[0], os.strerror(error.args[0])))  # what the socket said, by its number
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return ", ".join(str(reason[-1]) for reason in reasons) or "no reason given"


def _spoken(error: OSError) -> str:
    """What happened, for people."""
    if isinstance(error, TimeoutError):
        return "no answer in time: is the address right, does a firewall drop it?"
    if isinstance(error, ConnectionRefusedError):
        return "refused: nobody listens on that port with that transport"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return error.strerror or str(error)
