"""`wsgate turn-credentials`: time-limited credentials from the secret of an ini file, for a test (rule A4)."""

from __future__ import annotations

import json

from wsgate.config import Configuration
from wsgate.errors import ConfigurationError, StartError
from wsgate.settings import Switch
from wsgate.turn.auth import HandedOut, opaque_string, time_limited_password

MAX_USER_CHARACTERS = 256


def make(configuration: Configuration, user: str, ttl: int, unix_time: float) -> HandedOut:
    """Credentials `expiry:user` by the newest secret of [turn]. Raises WsgateError, which shows no secret."""
    try:
        user = opaque_string(user)
    except ValueError as error:
        raise StartError(f"--user: {error}") from None
    if len(user) > MAX_USER_CHARACTERS:
        raise StartError(f"--user: more than {MAX_USER_CHARACTERS} characters")
    username = f"{int(unix_time) + ttl}:{user}" if user else str(int(unix_time) + ttl)
    settings = configuration.turn
    if settings is None:
        raise ConfigurationError(
            "there is no TURN server: the section is missing or off", file=configuration.path, section="turn"
        )
    password = time_limited_password(_newest_secret(configuration), username, settings.shared_secret_hash)
    return HandedOut(username, password, ttl)


def _newest_secret(configuration: Configuration) -> bytes:
    from wsgate.handover import Files
    from wsgate.media import shared_secrets

    settings = configuration.turn
    secrets = shared_secrets(settings, Files(configuration.directory)) if settings is not None else []
    if not secrets:
        raise ConfigurationError(
            "no secret is configured: without one there are no time-limited credentials",
            file=configuration.path,
            section="turn",
            option="shared_secret",
            allowed="a secret, or shared_secret_file with the name of a file that holds one in each line",
        )
    return secrets[0].encode()


def rtc_configuration(uris: tuple[str, ...], credentials: HandedOut) -> str:
    """The browsers' RTCConfiguration as JSON (W3C WebRTC §4.2.1)."""
    server = {"urls": list(uris), "username": credentials.username, "credential": credentials.password}
    return json.dumps({"iceServers": [server]})


def uris(configuration: Configuration, host: str) -> tuple[str, ...]:
    """What browsers are told of the server (`uris`): as configured, or every port of the ini file at `host`.

    A port 0 is not known before the daemon runs, and is left out.
    """
    from wsgate.media import Place, uris_at

    settings = configuration.turn
    if settings is None:
        return ()
    places = [Place("turn", address.port, "udp") for address in settings.udp]
    places += [Place("turn", address.port, "tcp") for address in settings.tcp]
    places += [Place("turns", address.port, "tcp") for address in settings.tls]
    for listener in configuration.listeners.values():
        if listener.turn and listener.tls is not Switch.OFF:
            places += [Place("turns", address.port, "tcp") for address in listener.bind]
        if listener.turn and listener.tls is not Switch.ON:
            places += [Place("turn", address.port, "tcp") for address in listener.bind]
    return uris_at(settings, host, [place for place in places if place.port])


def own_host(configuration: Configuration) -> str:
    """The host in those URIs: `[sip] public` where it is set, else this machine's first address."""
    from wsgate.crew import own_hosts

    public = configuration.sip.public
    return public.host if public is not None else own_hosts()[0]
