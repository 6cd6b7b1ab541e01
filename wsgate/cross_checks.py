"""What options say together: the contradictions that no single option of an ini file can see.

Every error is a ConfigurationError that names file, section, option and what is allowed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.config import Configuration, placed_endpoints
from wsgate.errors import ConfigurationError
from wsgate.handover import Endpoint
from wsgate.net.listener import ListenerSettings
from wsgate.turn.faults import faults


class Contradiction(NamedTuple):
    """An option that cannot be as it is beside others; `section` is empty where a whole one is missing."""

    section: str
    option: str
    problem: str
    allowed: str = ""


def check(configuration: Configuration) -> None:
    """What single options cannot see; the first contradiction is told. Raises ConfigurationError."""
    for find in _CHECKS:
        for section, option, problem, allowed in find(configuration):
            raise ConfigurationError(problem, file=configuration.path, section=section, option=option, allowed=allowed)


def _listeners(configuration: Configuration) -> Iterator[Contradiction]:
    has_turn = configuration.turn is not None and configuration.turn.enabled
    if not configuration.listeners and not has_turn:
        yield Contradiction("", "", "there is no [listener NAME] section: nobody could connect")
    for name, listener in configuration.listeners.items():
        yield from _listener(f"listener {name}", listener, has_turn)
    path = configuration.websocket.path
    if not path.startswith("/"):
        yield Contradiction("websocket", "path", f"{path!r} is no path", "/...")


def _listener(section: str, listener: ListenerSettings, has_turn: bool) -> Iterator[Contradiction]:
    if not listener.bind:
        yield Contradiction(section, "bind", "a listener needs an address and port", "host:port, ...")
    if listener.private_key and not listener.certificate:
        yield Contradiction(section, "certificate", "a private key needs its certificate", "a PEM file")
    if listener.turn and not has_turn:
        problem = "there is no TURN server: the section [turn] is missing or off"
        yield Contradiction(section, "turn", problem, "on where [turn] stands, off")
    for option in ("tls_at_relay", "proxy_protocol"):
        if getattr(listener, option) and not listener.trusted_proxies:
            problem = f"{option} = on is believed from trusted_proxies alone, and there are none"
            yield Contradiction(section, "trusted_proxies", problem, "a list of addresses or CIDRs")


def _turn(configuration: Configuration) -> Iterator[Contradiction]:
    for found in () if configuration.turn is None else faults(configuration.turn):
        yield Contradiction("turn", found.option, found.problem, found.allowed)


def _binds(configuration: Configuration) -> Iterator[Contradiction]:
    if not configuration.sip.bind:
        yield Contradiction("sip", "bind", "the backend side needs an address and port", "host:port, ...")
    if configuration.sip.tls_bind and not configuration.tls_listener:
        problem = "SIP over TLS shows the certificate of the first [listener ...] with TLS, and there is none"
        yield Contradiction("sip", "tls_bind", problem, "empty, or a listener with tls = on")
    taken: list[tuple[Endpoint, str]] = []
    for endpoint, (section, option) in placed_endpoints(configuration):
        if endpoint.worker and endpoint.shared:
            continue
        problem, allowed = _fault_of(endpoint)
        if problem:
            yield Contradiction(section, option, problem, allowed)
            continue
        for other, other_place in taken:
            if _exclude(endpoint, other):
                protocol = "UDP" if endpoint.datagram else "TCP"
                problem = f"{protocol} {endpoint.address} is taken by {other_place} ({other.address})"
                yield Contradiction(section, option, problem, "every address and port once")
        taken.append((endpoint, f"[{section}] {option}"))


def _fault_of(endpoint: Endpoint) -> tuple[str, str]:
    """What is wrong with an address and port by themselves, and what is allowed; empty for nothing."""
    if endpoint.address.port > 65535:
        problem = f"worker {endpoint.worker} would need port {endpoint.address.port}"
        return problem, "a port with room for one more for each further worker ([wsgate] workers)"
    try:
        ipaddress.ip_address(endpoint.address.host)
    except ValueError:
        return f"{endpoint.address.host!r} is no IP address", "IP address:port, 0.0.0.0 or [::] for all"
    return "", ""


def _exclude(one: Endpoint, other: Endpoint) -> bool:
    """True when not both can be bound."""
    return one == other or (one.datagram == other.datagram and _overlap(one.address, other.address))


def _fallbacks(configuration: Configuration) -> Iterator[Contradiction]:
    """A request handed to one of our own ports would come back for ever."""
    for name, listener in configuration.listeners.items():
        fallback = listener.http_fallback
        if fallback is None:
            continue
        section = f"listener {name}"
        if fallback.port == 0:
            yield Contradiction(section, "http_fallback", "the port is missing", "host:port of a web server")
        hosts = ("127.0.0.1", "::1") if fallback.host == "localhost" else (fallback.host,)
        for endpoint, (taker, option) in placed_endpoints(configuration):
            if not endpoint.datagram and any(_leads_to(endpoint.address, host, fallback.port) for host in hosts):
                problem = f"{fallback} is our own port ([{taker}] {option})"
                yield Contradiction(section, "http_fallback", problem, "host:port of a web server that is not wsgate")


def _leads_to(bound: Address, host: str, port: int) -> bool:
    """True when who connects to `host` and `port` reaches the socket at `bound`, as far as can be seen here."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    own = ipaddress.ip_address(bound.host)
    if bound.port != port:
        return False
    return own == ip or ((own.is_unspecified or ip.is_unspecified) and (ip.is_loopback or ip.is_unspecified))


def _overlap(one: Address, other: Address) -> bool:
    """True when both cannot be bound: the same port, and the same host or one that means all of its family."""
    if one.port != other.port or one.port == 0:
        return False
    first, second = ipaddress.ip_address(one.host), ipaddress.ip_address(other.host)
    same_family = first.version == second.version
    return same_family and (first == second or first.is_unspecified or second.is_unspecified)


def _backends(configuration: Configuration) -> Iterator[Contradiction]:
    for domain, backend in configuration.backends.items():
        section = f"backend {domain}"
        if not backend.target:
            yield Contradiction(section, "target", "the target is missing", "a SIP URI (sip:..., sips:...) or embedded")
        if not backend.transports:
            yield Contradiction(section, "transports", "at least one is needed", "udp, tcp, tls, ws, wss")
        if backend.client_private_key and not backend.client_certificate:
            yield Contradiction(section, "client_certificate", "a private key needs its certificate", "a PEM file")


def _ranges(configuration: Configuration) -> Iterator[Contradiction]:
    registrar, turn, workers = configuration.registrar, configuration.turn, configuration.process.workers
    if registrar.min_expires > registrar.max_expires:
        yield Contradiction("registrar", "min_expires", "min_expires is above max_expires")
    if not registrar.digest_algorithms:
        yield Contradiction("registrar", "digest_algorithms", "at least one algorithm is needed", "MD5, SHA-256")
    if turn is None:
        return
    if turn.private_key and not turn.certificate:
        yield Contradiction("turn", "certificate", "a private key needs its certificate", "a PEM file")
    if workers > 1 and turn.relay_ports[1] - turn.relay_ports[0] < 2 * workers:
        problem = f"{workers} workers cannot share so few ports"
        yield Contradiction("turn", "relay_ports", problem, "at least three for each worker ([wsgate] workers)")
    if turn.min_lifetime > turn.max_lifetime:
        yield Contradiction("turn", "min_lifetime", "min_lifetime is above max_lifetime")


def _identity(configuration: Configuration) -> Iterator[Contradiction]:
    identity = configuration.identity
    if identity.jwt_keys and not identity.jwt_from:
        problem = "with jwt_keys a token must come from somewhere"
        yield Contradiction("identity", "jwt_from", problem, "header, query, cookie")
    if identity.cookie_option and "*" in configuration.websocket.origins:
        # A browser adds its cookies to what any page opens: any page could then phone as the user.
        problem = f"* opens the door to every page while cookies count ([identity] {identity.cookie_option})"
        allowed = (
            "same, or a list of origins; * where no Cookie is forwarded, cookie_secret is empty and jwt_from"
            " is without cookie"
        )
        yield Contradiction("websocket", "origins", problem, allowed)


_CHECKS: tuple[Callable[[Configuration], Iterator[Contradiction]], ...] = (
    _listeners,
    _turn,
    _binds,
    _fallbacks,
    _backends,
    _ranges,
    _identity,
)
"""In the order in which they are told."""
