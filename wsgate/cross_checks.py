"""What options say together: the contradictions that no single option of an ini file can see.

Every error is a ConfigurationError that names file, section, option and what is allowed.
"""

from __future__ import annotations

import ipaddress

from wsgate.addr import Address
from wsgate.config import Configuration, placed_endpoints
from wsgate.errors import ConfigurationError
from wsgate.handover import Endpoint
from wsgate.turn.faults import faults


def check(configuration: Configuration) -> None:
    """What single options cannot see. Raises ConfigurationError."""
    _check_listeners(configuration)
    _check_turn(configuration)
    _check_binds(configuration)
    _check_fallbacks(configuration)
    _check_backends(configuration)
    _check_ranges(configuration)
    _check_identity(configuration)


def _check_listeners(configuration: Configuration) -> None:
    path = configuration.path
    if not configuration.listeners and (configuration.turn is None or not configuration.turn.enabled):
        raise ConfigurationError("there is no [listener NAME] section: nobody could connect", file=path)
    for name, listener in configuration.listeners.items():
        title = f"listener {name}"
        if not listener.bind:
            raise ConfigurationError(
                "a listener needs an address and port",
                file=path,
                section=title,
                option="bind",
                allowed="host:port, ...",
            )
        if listener.private_key and not listener.certificate:
            raise ConfigurationError(
                "a private key needs its certificate",
                file=path,
                section=title,
                option="certificate",
                allowed="a PEM file",
            )
        if listener.turn and (configuration.turn is None or not configuration.turn.enabled):
            raise ConfigurationError(
                "there is no TURN server: the section [turn] is missing or off",
                file=path,
                section=title,
                option="turn",
                allowed="on where [turn] stands, off",
            )
        for option_name in ("tls_at_relay", "proxy_protocol"):
            if getattr(listener, option_name) and not listener.trusted_proxies:
                raise ConfigurationError(
                    f"{option_name} = on is believed from trusted_proxies alone, and there are none",
                    file=path,
                    section=title,
                    option="trusted_proxies",
                    allowed="a list of addresses or CIDRs",
                )
    if not configuration.websocket.path.startswith("/"):
        raise ConfigurationError(
            f"{configuration.websocket.path!r} is no path",
            file=path,
            section="websocket",
            option="path",
            allowed="/...",
        )


def _check_turn(configuration: Configuration) -> None:
    turn = configuration.turn
    for found in () if turn is None else faults(turn):
        raise ConfigurationError(
            found.problem, file=configuration.path, section="turn", option=found.option, allowed=found.allowed
        )


def _check_binds(configuration: Configuration) -> None:
    path = configuration.path
    if not configuration.sip.bind:
        raise ConfigurationError(
            "the backend side needs an address and port",
            file=path,
            section="sip",
            option="bind",
            allowed="host:port, ...",
        )
    if configuration.sip.tls_bind and not configuration.tls_listener:
        raise ConfigurationError(
            "SIP over TLS shows the certificate of the first [listener ...] with TLS, and there is none",
            file=path,
            section="sip",
            option="tls_bind",
            allowed="empty, or a listener with tls = on",
        )
    taken: list[tuple[Endpoint, str]] = []
    for endpoint, (section, option_name) in placed_endpoints(configuration):
        if endpoint.worker and endpoint.shared:
            continue
        if endpoint.address.port > 65535:
            raise ConfigurationError(
                f"worker {endpoint.worker} would need port {endpoint.address.port}",
                file=path,
                section=section,
                option=option_name,
                allowed="a port with room for one more for each further worker ([wsgate] workers)",
            )
        try:
            ipaddress.ip_address(endpoint.address.host)
        except ValueError:
            problem = f"{endpoint.address.host!r} is no IP address"
            raise ConfigurationError(
                problem,
                file=path,
                section=section,
                option=option_name,
                allowed="IP address:port, 0.0.0.0 or [::] for all",
            ) from None
        for other, other_place in taken:
            same_protocol = endpoint.datagram == other.datagram
            if endpoint == other or (same_protocol and _overlap(endpoint.address, other.address)):
                protocol = "UDP" if endpoint.datagram else "TCP"
                raise ConfigurationError(
                    f"{protocol} {endpoint.address} is taken by {other_place} ({other.address})",
                    file=path,
                    section=section,
                    option=option_name,
                    allowed="every address and port once",
                )
        taken.append((endpoint, f"[{section}] {option_name}"))


def _check_fallbacks(configuration: Configuration) -> None:
    """A request handed to one of our own ports would come back for ever."""
    for name, listener in configuration.listeners.items():
        fallback = listener.http_fallback
        if fallback is None:
            continue
        place = {"file": configuration.path, "section": f"listener {name}", "option": "http_fallback"}
        if fallback.port == 0:
            raise ConfigurationError("the port is missing", **place, allowed="host:port of a web server")
        hosts = ("127.0.0.1", "::1") if fallback.host == "localhost" else (fallback.host,)
        for endpoint, (section, option_name) in placed_endpoints(configuration):
            if not endpoint.datagram and any(_leads_to(endpoint.address, host, fallback.port) for host in hosts):
                problem = f"{fallback} is our own port ([{section}] {option_name})"
                raise ConfigurationError(problem, **place, allowed="host:port of a web server that is not wsgate")


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


def _check_backends(configuration: Configuration) -> None:
    for domain, backend in configuration.backends.items():
        place = {"file": configuration.path, "section": f"backend {domain}"}
        if not backend.target:
            allowed = "a SIP URI (sip:..., sips:...) or embedded"
            raise ConfigurationError("the target is missing", **place, option="target", allowed=allowed)
        if not backend.transports:
            allowed = "udp, tcp, tls, ws, wss"
            raise ConfigurationError("at least one is needed", **place, option="transports", allowed=allowed)
        if backend.client_private_key and not backend.client_certificate:
            problem = "a private key needs its certificate"
            raise ConfigurationError(problem, **place, option="client_certificate", allowed="a PEM file")


def _check_ranges(configuration: Configuration) -> None:
    path, registrar, turn = configuration.path, configuration.registrar, configuration.turn
    if registrar.min_expires > registrar.max_expires:
        raise ConfigurationError(
            "min_expires is above max_expires", file=path, section="registrar", option="min_expires"
        )
    if not registrar.digest_algorithms:
        raise ConfigurationError(
            "at least one algorithm is needed",
            file=path,
            section="registrar",
            option="digest_algorithms",
            allowed="MD5, SHA-256",
        )
    if turn is None:
        return
    if turn.private_key and not turn.certificate:
        problem = "a private key needs its certificate"
        raise ConfigurationError(problem, file=path, section="turn", option="certificate", allowed="a PEM file")
    workers = configuration.process.workers
    if workers > 1 and turn.relay_ports[1] - turn.relay_ports[0] < 2 * workers:
        raise ConfigurationError(
            f"{workers} workers cannot share so few ports",
            file=path,
            section="turn",
            option="relay_ports",
            allowed="at least three for each worker ([wsgate] workers)",
        )
    if turn.min_lifetime > turn.max_lifetime:
        raise ConfigurationError("min_lifetime is above max_lifetime", file=path, section="turn", option="min_lifetime")


def _check_identity(configuration: Configuration) -> None:
    identity = configuration.identity
    if identity.jwt_keys and not identity.jwt_from:
        raise ConfigurationError(
            "with jwt_keys a token must come from somewhere",
            file=configuration.path,
            section="identity",
            option="jwt_from",
            allowed="header, query, cookie",
        )
    if identity.cookie_option and "*" in configuration.websocket.origins:
        # A browser adds its cookies to what any page opens: any page could then phone as the user.
        raise ConfigurationError(
            f"* opens the door to every page while cookies count ([identity] {identity.cookie_option})",
            file=configuration.path,
            section="websocket",
            option="origins",
            allowed="same, or a list of origins; * where no Cookie is forwarded, cookie_secret is empty and jwt_from"
            " is without cookie",
        )
