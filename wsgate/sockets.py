"""The supervisor's sockets and memory files: opened whole or not at all, handed to workers as they are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from wsgate.addr import Address
from wsgate.errors import StartError
from wsgate.handover import INI, Endpoint, FileReference
from wsgate.log import logger
from wsgate.plan import Plan

BACKLOG = 1024
"""Connections that may wait to be accepted, also while a worker is being replaced."""

INBOX_BYTES = 1024 * 1024
"""Asked of the kernel for what waits in a worker's inbox; it may grant less."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""A certificate, user or secret file beyond this is refused."""

FREE_PORT_TRIES = 20
"""How often a port that is free for UDP is tried for TCP too, where port 0 was asked for."""

OWN_ADDRESSES_MAX = 64
"""At so many addresses of this machine a UDP wildcard of [turn] has sockets of their own."""

_WILDCARDS = ("0.0.0.0", "::")
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

_HINTS = {
    errno.EADDRINUSE: "another program has it, or a wsgate that runs already",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "a port below 1024 takes root or the capability CAP_NET_BIND_SERVICE",
}


def open_sockets(plan: Plan) -> dict[Endpoint, socket.socket]:
    """Every socket of the plan, bound and (TCP) listening. Raises StartError, and then none is left open.

    `[::]` on a machine without IPv6 is left out with a warning. SIP over UDP and TCP get the same port where it is 0.
    A port that several workers share has one socket for each (SO_REUSEPORT): the kernel spreads connections, and the
    packets of one UDP client stay with one worker. The first is bound without that, so that a port of somebody else is
    still found taken. A wildcard of TURN over UDP has a further socket for each address of this machine, under its
    endpoint with that address: STUN is answered from where it was asked (RFC 8489 §6.3.1), and of a wildcard the kernel
    chooses the source.
    """
    opened: dict[Endpoint, socket.socket] = {}
    try:
        for endpoint, place in zip(plan.endpoints, plan.places, strict=True):
            try:
                hosts = _hosts_behind(endpoint, plan)
                opened[endpoint] = _opened(endpoint, opened, (plan.workers > 1 and endpoint.shared) or bool(hosts))
                opened.update(_at_each(hosts, endpoint, opened))
            except OSError as error:
                protocol = "UDP" if endpoint.datagram else "TCP"
                if endpoint.address.host == "::" and error.errno in _NO_FAMILY:
                    if not endpoint.worker:
                        logger.warning(
                            "%s %s: no %s on %s: %s", plan.path, place, protocol, endpoint.address, error.strerror
                        )
                    continue
                hint = f" ({_HINTS[error.errno]})" if error.errno in _HINTS else ""
                raise StartError(
                    f"{plan.path} {place}: cannot open {protocol} {endpoint.address}: {error.strerror}{hint}"
                ) from None
    except StartError:
        close_all(opened)
        raise
    return opened


def _hosts_behind(endpoint: Endpoint, plan: Plan) -> tuple[str, ...]:
    """The addresses that a UDP wildcard of TURN stands for where there are several; of one the kernel has no choice."""
    if endpoint.kind != "turn-udp" or endpoint.address.host not in _WILDCARDS:
        return ()
    hosts = tuple(host for host in plan.hosts if (":" in host) == (":" in endpoint.address.host))
    if len(hosts) > OWN_ADDRESSES_MAX and not endpoint.worker:
        logger.warning(
            "%s [turn] udp: of %d addresses only %d are sure to be answered from; name those that clients use",
            plan.path,
            len(hosts),
            OWN_ADDRESSES_MAX,
        )
    return hosts[:OWN_ADDRESSES_MAX] if len(hosts) > 1 else ()


def _at_each(
    hosts: Iterable[str], endpoint: Endpoint, opened: Mapping[Endpoint, socket.socket]
) -> dict[Endpoint, socket.socket]:
    """Sockets beside that of a wildcard; one that cannot be had is left to it."""
    found = {}
    port = opened[endpoint].getsockname()[1]
    for host in hosts:
        address = Address(host, port)
        try:
            found[endpoint._replace(address=address)] = _bound(address, datagram=True, shared=True)
        except OSError as error:
            logger.debug("UDP %s is left to %s: %s", address, endpoint.address, error.strerror)
    return found


def where(plan: Plan, opened: Mapping[Endpoint, socket.socket]) -> dict[str, str]:
    """For each section and option the addresses it opened, in words; what several workers share stands there once."""
    bound: dict[str, dict[str, None]] = {}
    for endpoint, place in zip(plan.endpoints, plan.places, strict=True):
        if endpoint in opened:
            protocol = "UDP" if endpoint.datagram else "TCP"
            text = f"{protocol} {Address(*opened[endpoint].getsockname()[:2])}"
            bound.setdefault(place, {})[text] = None
    return {place: ", ".join(texts) for place, texts in bound.items()}


def _opened(endpoint: Endpoint, opened: Mapping[Endpoint, socket.socket], shared: bool) -> socket.socket:
    if shared:
        return _share(endpoint, opened)
    if endpoint.kind == "sip-udp" and endpoint.address.port == 0:
        return _with_free_tcp_port(endpoint)
    address = endpoint.address
    if endpoint.kind == "sip-tcp" and address.port == 0:
        twin = opened[endpoint._replace(kind="sip-udp")]
        address = address._replace(port=twin.getsockname()[1])
    return _bound(address, endpoint.datagram)


def _share(endpoint: Endpoint, opened: Mapping[Endpoint, socket.socket]) -> socket.socket:
    """One of several sockets on the same port."""
    address = endpoint.address
    twin = next((sock for one, sock in opened.items() if one._replace(worker=endpoint.worker) == endpoint), None)
    if twin is None:
        _bound(address, endpoint.datagram).close()
    else:
        address = address._replace(port=twin.getsockname()[1])
    return _bound(address, endpoint.datagram, shared=True)


def close_streams(opened: dict[Endpoint, socket.socket], worker: int) -> list[Endpoint]:
    """Close the TCP ports that a worker shares with others, who get all its new connections then; for `reopen`."""
    found = [one for one in opened if one.worker == worker and one.shared and not one.datagram]
    for endpoint in found:
        opened.pop(endpoint).close()
    return found


def reopen(opened: dict[Endpoint, socket.socket], endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Open what `close_streams` closed; returns what cannot be opened now."""
    failed = []
    for endpoint in endpoints:
        try:
            opened[endpoint] = _share(endpoint, opened)
        except OSError as error:
            logger.error("cannot open TCP %s again: %s", endpoint.address, error.strerror)
            failed.append(endpoint)
    return failed


def _with_free_tcp_port(endpoint: Endpoint) -> socket.socket:
    """A UDP socket on a port that is free for TCP as well."""
    for attempt in range(FREE_PORT_TRIES):
        udp = _bound(endpoint.address, datagram=True)
        try:
            _bound(endpoint.address._replace(port=udp.getsockname()[1]), datagram=False).close()
        except OSError:
            udp.close()
            if attempt == FREE_PORT_TRIES - 1:
                raise
        else:
            return udp
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _bound(address: Address, datagram: bool, *, shared: bool = False) -> socket.socket:
    version = ipaddress.ip_address(address.host).version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM)
    try:
        if version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not datagram:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((address.host, address.port))
        if not datagram:
            made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def addresses(sockets: Mapping[Endpoint, socket.socket]) -> dict[Endpoint, Address]:
    """What each socket is bound to."""
    return {endpoint: Address(*sock.getsockname()[:2]) for endpoint, sock in sockets.items()}


def inbox() -> tuple[socket.socket, socket.socket]:
    """Where one worker reads what the others write: a Unix socket that keeps the borders of messages."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (reading, writing):
        end.setblocking(False)
    writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, INBOX_BYTES)
    return reading, writing


def close_all(sockets: Mapping[Endpoint, socket.socket]) -> None:
    """Close every socket."""
    for one in sockets.values():
        one.close()


def read_files(plan: Plan) -> dict[str, int]:
    """The ini file (as INI) and every file it names, each as a sealed memory file; files that a worker writes, open.

    Raises StartError.
    """
    descriptors: dict[str, int] = {}
    try:
        descriptors[INI] = _memory_file(Path(plan.path), plan.path)
        for reference in plan.files:
            place = f"{plan.path} [{reference.section}] {reference.option}"
            descriptors[reference.name] = _memory_file(plan.directory / reference.name, place, reference.section)
        for reference in plan.states:
            descriptors[reference.name] = _state_file(plan, reference)
    except StartError:
        close_files(descriptors)
        raise
    return descriptors


def _state_file(plan: Plan, reference: FileReference) -> int:
    """A file that the worker writes, open for both; it may have no right to open it itself."""
    path = plan.directory / reference.name
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        place = f"{plan.path} [{reference.section}] {reference.option}"
        raise StartError(f"{place}: cannot open {path}: {error.strerror}") from None


def _memory_file(path: Path, place: str, section: str = "") -> int:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        hint = "; make it with: wsgate user add -c FILE USER" if section == "registrar" else ""
        raise StartError(f"{place}: cannot read {path}: {error.strerror}{hint}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StartError(f"{place}: {path} is larger than {MAX_FILE_BYTES} bytes")
    descriptor = os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return descriptor


def close_files(descriptors: Mapping[str, int]) -> None:
    """Close every memory file."""
    for descriptor in descriptors.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
