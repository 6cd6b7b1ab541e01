"""The TURN server of a worker as it is built from [turn]: its certificate, and a reload that is all or nothing."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.turn_process import REALM, write_certificate
from wsgate.errors import WsgateError
from wsgate.guard import Guard, LimitSettings
from wsgate.handover import Files
from wsgate.media import Media, Sockets
from wsgate.metrics import Counters
from wsgate.turn.settings import TurnSettings


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Media]]:
    made: list[Media] = []

    def build(own_hosts: tuple[str, ...] = ("127.0.0.1",), **options: Any) -> Media:
        udp, tls = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.create_server(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        options.setdefault("relay_address", ("127.0.0.1",))
        settings = TurnSettings(realm=REALM, **options)
        made.append(
            Media(
                settings,
                Files(tmp_path),
                Sockets([udp], [], [tls], []),
                Guard(LimitSettings()),
                own_hosts=own_hosts,
                keys=[os.urandom(32)],
                is_registered=lambda _: False,
                counters=Counters(),
                call_peers=None,
            )
        )
        return made[-1]

    yield build
    for media in made:
        media.stop()


def write(directory: Path, name: str, *, both: bool = False) -> tuple[str, str]:
    """A certificate and its key, in one file with `both`; their names."""
    (directory / name).mkdir()
    certificate, private_key = (Path(path) for path in write_certificate(directory / name))
    if both:
        certificate.write_bytes(certificate.read_bytes() + private_key.read_bytes())
    return str(certificate.relative_to(directory)), "" if both else str(private_key.relative_to(directory))


def test_of_this_machine_the_relay_range_alone_is_reached(make: Callable[..., Media]) -> None:
    """Rule P5. Loopback has rules of its own: whoever allows it means this machine."""
    media = make(own_hosts=("203.0.114.1", "203.0.114.2", "127.0.0.1"))
    assert not media.server.peers.host_allowed("203.0.114.1")
    media.prepare(media._settings, Files(Path()))()
    assert not media.server.peers.host_allowed("203.0.114.2")
    assert media.server.peers.host_allowed("203.0.114.3")


def contexts(media: Media) -> tuple[object, object]:
    assert media._context is not None
    assert media._dtls is not None
    return media._context(), media._dtls._context


def test_the_key_may_stand_behind_the_certificate(make: Callable[..., Media], tmp_path: Path) -> None:
    """As in [listener], whose certificate [turn] takes where it names none."""
    certificate, private_key = write(tmp_path, "one", both=True)
    media = make(certificate=certificate, private_key=private_key)
    before = contexts(media)
    media.prepare(media._settings, Files(tmp_path))()
    assert all(now is not then for now, then in zip(contexts(media), before, strict=True))


def test_a_reload_takes_all_or_nothing(make: Callable[..., Media], tmp_path: Path) -> None:
    """A certificate that TLS takes and DTLS does not leaves both as they were, and users, secrets and peers too."""
    certificate, private_key = write(tmp_path, "one")
    media = make(certificate=certificate, private_key=private_key)
    kept = *contexts(media), media.server.credentials, media.server.peers, media._settings
    trusted = (tmp_path / certificate).read_bytes().replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-")
    (tmp_path / "trusted.pem").write_bytes(trusted)
    changed = dataclasses.replace(media._settings, certificate="trusted.pem", shared_secret=("new",))
    with pytest.raises(WsgateError, match=r"trusted\.pem.* for DTLS"):
        media.prepare(changed, Files(tmp_path))
    assert (*contexts(media), media.server.credentials, media.server.peers, media._settings) == kept


def test_what_was_prepared_counts_when_it_is_taken(make: Callable[..., Media], tmp_path: Path) -> None:
    """Others may fail in between; from then on the new secrets are good."""
    certificate, private_key = write(tmp_path, "one")
    media = make(certificate=certificate, private_key=private_key)
    before = *contexts(media), media.server.credentials
    take = media.prepare(dataclasses.replace(media._settings, shared_secret=("new",)), Files(tmp_path))
    assert (*contexts(media), media.server.credentials) == before
    take()
    assert media.server.credentials.secrets == (b"new",)
    assert not set(contexts(media)) & set(before)
