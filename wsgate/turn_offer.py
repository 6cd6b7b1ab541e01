"""What browsers are told of the TURN server: its URIs, and credentials for those who are registered (rule A5)."""

from __future__ import annotations

from collections.abc import Callable

from wsgate.addr import Address
from wsgate.config import Configuration
from wsgate.directory import Directory
from wsgate.identity import Admitted
from wsgate.media import Media
from wsgate.net.clock import now
from wsgate.turn.settings import PeerPolicy
from wsgate.ws.handshake import Refusal

REGISTRATIONS_OFFERED = 4
"""Registrations of one user whose credentials /turn hands out together; browsers warn of more servers than that."""

Judge = Callable[[tuple[tuple[str, str], ...], str], Admitted | Refusal]
"""(header fields, query) of an HTTP request -> who it is."""


class TurnOffer:
    """The TURN server of one worker as browsers see it; `configuration` may be replaced at any time."""

    def __init__(self, configuration: Configuration, directory: Directory, judge: Judge) -> None:
        self.configuration = configuration
        self.media: Media | None = None
        """Set where there is a TURN server."""
        self._directory = directory
        self._judge = judge

    def hand_out(self, host: Address, registration: str) -> bytes:
        """The value of X-Turn-Credentials (rule A5)."""
        credentials = self.media.hand_out(registration) if self.media is not None else None
        if self.media is None or credentials is None:
            return b""
        username, password, ttl = credentials
        uris = ",".join(self.media.uris(self._host(host.host)))
        return f'username="{username}", password="{password}", ttl={ttl}, uris="{uris}"'.encode()

    def _host(self, asked_for: str) -> str:
        """The host at which browsers reach this machine: `[sip] public` where it is set, else the one asked for."""
        public = self.configuration.sip.public
        return public.host if public is not None else asked_for

    def uris(self, asked_for: str) -> tuple[str, ...]:
        """The TURN URIs for a browser that asked for this host; none where there is no TURN server."""
        return self.media.uris(self._host(asked_for)) if self.media is not None else ()

    def rtc_configuration(
        self, fields: tuple[tuple[str, str], ...], query: str, asked_for: str
    ) -> dict[str, object] | Refusal:
        """RTCConfiguration for whoever shows an identity and is registered as that (rule A5)."""
        media = self.media
        if media is None:
            return Refusal("404 Not Found", "there is no TURN server")
        admitted = self._judge(fields, query)
        if isinstance(admitted, Refusal):
            return admitted
        if admitted.identity is None:
            return Refusal("404 Not Found", "no identity is asked for here ([identity])")
        found = [
            registration
            for aor in admitted.identity.addresses_of_record()
            for registration in self._directory.registrations_for(aor)
            if registration.expires_at > now()
        ]
        found.sort(key=lambda one: one.expires_at, reverse=True)
        given = [credentials for one in found[: self._entries] if (credentials := media.hand_out(one.id)) is not None]
        if not given:
            return Refusal("403 Forbidden", "nobody is registered with this identity")
        urls = list(self.uris(asked_for))
        servers = [{"urls": urls, "username": one.username, "credential": one.password} for one in given]
        return {"iceServers": servers, "ttl": min(one.ttl for one in given)}

    @property
    def _entries(self) -> int:
        """For how many registrations /turn hands out credentials, the one that lasts longest first.

        With peer_policy = call those of another tab or device of the same user reach nobody of this one's calls (P6),
        and a request does not say which it is of. A browser asks all its servers and goes by the one that relays.
        """
        turn = self.configuration.turn
        return REGISTRATIONS_OFFERED if turn is not None and turn.peer_policy is PeerPolicy.CALL else 1
