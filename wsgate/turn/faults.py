"""What single options of [turn] cannot see of themselves: addresses nobody could relay at, names STUN cannot carry."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from wsgate.credentials import CredentialsError, check_name
from wsgate.turn import alternates
from wsgate.turn.alternates import Fault
from wsgate.turn.settings import TurnSettings
from wsgate.turn.uri import parse_uri

TEXT_CHARACTERS_MAX = 127
"""Of REALM and SOFTWARE (RFC 8489 §14.9, §14.14)."""


def faults(settings: TurnSettings) -> Iterator[Fault]:
    """Everything that is wrong with the section, the first to be told first."""
    found = alternates.fault(settings.udp, settings.alternate_address, settings.alternate_port)
    if found is not None:
        yield found
    relay_address = settings.relay_address or ()
    yield from _addresses("relay_address", relay_address)
    yield from _addresses("external_address", settings.external_address)
    if relay_address and not _families(settings.external_address) <= _families(relay_address):
        problem = "it is of a family that relay_address has not"
        yield Fault("external_address", problem, "for each of relay_address what clients and peers see")
    yield from _texts(settings)


def _addresses(option: str, hosts: Sequence[str]) -> Iterator[Fault]:
    """They are told to clients, and rule P5 knows the relay by them: never a wildcard."""
    allowed = "IP addresses, one per family"
    versions = set()
    for host in hosts:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            yield Fault(option, f"{host!r} is no IP address", allowed)
            continue
        if address.is_unspecified or address.is_multicast:
            yield Fault(option, f"{host} is no address of one host", allowed)
        if address.version in versions:
            yield Fault(option, f"{host} is a second address of its family", allowed)
        versions.add(address.version)


def _families(hosts: Sequence[str]) -> set[bool]:
    return {":" in host for host in hosts}


def _texts(settings: TurnSettings) -> Iterator[Fault]:
    allowed = f"at most {TEXT_CHARACTERS_MAX} characters"
    try:
        check_name("realm", settings.realm)
    except CredentialsError as error:
        yield Fault("realm", str(error), f"{allowed}, no colon")
    for option, text in (("realm", settings.realm), ("software", settings.software)):
        if len(text) > TEXT_CHARACTERS_MAX:
            yield Fault(option, f"it has {len(text)} characters", allowed)
    for uri in settings.uris or ():
        try:
            parse_uri(uri)
        except ValueError as error:
            yield Fault("uris", str(error), "auto, or a list of turn:host:port?transport=udp, turns:... and stun:...")
