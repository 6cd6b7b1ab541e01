"""What the files that options name hold for a worker: keys, users, token keys, certificates towards backends.

Every error is a ConfigurationError that names section and option.
"""

from __future__ import annotations

import os

from wsgate import keys
from wsgate.bearer import VerificationKey, parse_keys
from wsgate.config import Configuration
from wsgate.credentials import CredentialsError, Users, parse_users
from wsgate.errors import ConfigurationError, StartError
from wsgate.handover import Files
from wsgate.keys import Key
from wsgate.media import read_credentials
from wsgate.net.tls import ClientContexts, server_context
from wsgate.settings import Switch


def read_key_file(configuration: Configuration, files: Files) -> tuple[Key, ...]:
    """The keys of `[wsgate] key_file`, the one that signs first. Raises ConfigurationError."""
    name = configuration.process.key_file
    try:
        with open(files.path(name), encoding="ascii") as file:
            return keys.parse(file.read())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot use {name}: {error}", section="wsgate", option="key_file") from None


def read_users(configuration: Configuration, files: Files) -> Users:
    """The users of the embedded registrar; none where it serves no domain. Raises ConfigurationError."""
    if not configuration.embedded_domains:
        return Users()
    name = configuration.registrar.users
    try:
        with open(files.path(name), encoding="utf-8") as file:
            return parse_users(file.read())
    except (OSError, ValueError, CredentialsError) as error:
        raise ConfigurationError(f"cannot use {name}: {error}", section="registrar", option="users") from None


def read_all(configuration: Configuration, files: Files) -> None:
    """Read every file as a worker does, so that what cannot be used is told before anything changes.

    Left out are those that are made at start, and those that this user may not read. Raises ConfigurationError.
    """

    def readable(*names: str) -> bool:
        return all(os.access(files.path(name), os.R_OK) for name in names if name)

    if readable(configuration.process.key_file):
        read_key_file(configuration, files)
    if readable(configuration.registrar.users):
        read_users(configuration, files)
    if readable(configuration.identity.jwt_keys):
        read_jwt_keys(configuration, files)
    backends = configuration.backends.values()
    if all(readable(one.ca_file, one.client_certificate, one.client_private_key) for one in backends):
        client_contexts(configuration, files)
    for name, listener in configuration.listeners.items():
        if listener.tls is not Switch.OFF and readable(listener.certificate, listener.private_key):
            _try_certificate(f"listener {name}", listener.certificate, listener.private_key, files)
    turn = configuration.turn
    if turn is None:
        return
    if turn.certificate and readable(turn.certificate, turn.private_key):
        _try_certificate("turn", turn.certificate, turn.private_key, files)
    if readable(turn.users, turn.shared_secret_file, turn.oauth_keys):
        read_credentials(turn, files)


def _try_certificate(section: str, certificate: str, private_key: str, files: Files) -> None:
    try:
        server_context(files.path(certificate), optional_path(files, private_key))
    except StartError as error:
        raise ConfigurationError(str(error), section=section, option="certificate") from None


def client_contexts(configuration: Configuration, files: Files) -> ClientContexts:
    """The contexts towards TLS and WSS backends; files that cannot be used are told now, not at the first call.

    Raises ConfigurationError.
    """
    contexts = ClientContexts(files.path)
    for domain, backend in configuration.backends.items():
        names = (backend.ca_file, backend.client_certificate, backend.client_private_key)
        if any(names):
            try:
                contexts.get(*names, checks_name=False)
            except StartError as error:
                raise ConfigurationError(str(error), section=f"backend {domain}") from None
    return contexts


def read_jwt_keys(configuration: Configuration, files: Files) -> tuple[VerificationKey, ...]:
    """The keys that tokens of `[identity]` are verified with (RFC 7519). Raises ConfigurationError."""
    name = configuration.identity.jwt_keys
    if not name:
        return ()
    try:
        with open(files.path(name), "rb") as file:
            return parse_keys(file.read())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot use {name}: {error}", section="identity", option="jwt_keys") from None


def optional_path(files: Files, name: str) -> str:
    """Where a file is opened; empty where none is named."""
    return files.path(name) if name else ""
