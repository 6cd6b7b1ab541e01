"""What the ini file asks of the supervisor: sockets, files, user, log. Read in a short-lived child.

The settings live beside the machines that obey them, and some of those import gevent, which must never be in the
process that forks. The child reads the file, makes the key file and the self-signed certificate where they are missing,
and reports a plan as JSON.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wsgate import daemon, keys
from wsgate.addr import Address
from wsgate.errors import StartError, WsgateError, missing_module
from wsgate.handover import Endpoint, FileReference

if TYPE_CHECKING:
    from wsgate.config import Configuration


class Plan(NamedTuple):
    """All that the supervisor needs to know of an ini file. `user` and `group` None mean auto."""

    path: str
    user: str | None
    group: str | None
    pidfile: str
    log_level: str
    log_target: str
    drain_timeout: float
    endpoints: tuple[Endpoint, ...]
    places: tuple[str, ...]
    files: tuple[FileReference, ...]
    states: tuple[FileReference, ...]
    databases: tuple[FileReference, ...]
    notices: tuple[str, ...]
    workers: int = 1
    hosts: tuple[str, ...] = ()
    """The addresses of this machine that clients may send to, loopback and link-local apart."""

    @property
    def directory(self) -> Path:
        """Where relative file names begin."""
        return Path(self.path).parent


def read(path: str) -> Plan:
    """The plan of the ini file `path` (absolute), made in a child. Raises StartError."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(path, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise StartError(f"{path}: reading the configuration ended without a result")
    report = json.loads(text)
    if "error" in report:
        raise StartError(report["error"])
    return _decoded(report)


def _child(path: str, writer: int) -> None:
    """Report the plan or the error on `writer` and end this process."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        report = _report(path)
        with open(writer, "w", encoding="utf-8") as pipe:
            json.dump(report, pipe)
        status = 0
    except BaseException:  # this process has no other place to show what went wrong than its standard error
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _report(path: str) -> dict[str, Any]:
    try:
        from wsgate.ini import load

        configuration = load(path)
        # Before anything is made: nothing is to be left behind by what cannot start.
        daemon.account(configuration.process.user, configuration.process.group, configuration.path)
        return _encoded(configuration, make_missing_files(configuration))
    except ImportError as error:
        return {"error": str(missing_module(error))}
    except WsgateError as error:
        return {"error": str(error)}


def _encoded(configuration: Configuration, made: Sequence[str]) -> dict[str, Any]:
    from wsgate.crew import own_hosts

    process = configuration.process
    return {
        "path": configuration.path,
        "user": process.user,
        "group": process.group,
        "pidfile": process.pidfile,
        "log_level": process.log_level.value,
        "log_target": process.log_target,
        "drain_timeout": process.drain_timeout,
        "endpoints": configuration.endpoints(),
        "places": configuration.places(),
        "files": configuration.files(),
        "states": configuration.states(),
        "databases": configuration.databases(),
        "notices": [*configuration.notices, *made],
        "workers": process.workers,
        "hosts": [host for host in own_hosts() if not host.startswith(("127.", "::1", "fe80:"))],
    }


def _decoded(report: dict[str, Any]) -> Plan:
    endpoints = tuple(
        Endpoint(kind, name, Address(*address), worker) for kind, name, address, worker in report.pop("endpoints")
    )
    files = tuple(FileReference(*reference) for reference in report.pop("files"))
    states = tuple(FileReference(*reference) for reference in report.pop("states"))
    report["databases"] = tuple(FileReference(*reference) for reference in report["databases"])
    places, notices = tuple(report.pop("places")), tuple(report.pop("notices"))
    report["hosts"] = tuple(report["hosts"])
    return Plan(endpoints=endpoints, files=files, states=states, places=places, notices=notices, **report)


def make_missing_files(configuration: Configuration) -> list[str]:
    """Make the key file and, where a listener needs it, the self-signed certificate. Raises StartError.

    Returns lines for the log.
    """
    from wsgate.config import SELF_SIGNED_CERTIFICATE, SELF_SIGNED_PRIVATE_KEY

    directory = configuration.directory
    key_file = directory / configuration.process.key_file
    if not key_file.exists():
        write_secret(key_file, keys.make(os.urandom).encode(), f"{configuration.path} [wsgate] key_file")
    certificate, private_key = directory / SELF_SIGNED_CERTIFICATE, directory / SELF_SIGNED_PRIVATE_KEY
    if configuration.self_signed and not (certificate.exists() and private_key.exists()):
        from wsgate.certificate import self_signed

        made = self_signed(own_names(), datetime.datetime.now(datetime.timezone.utc))
        place = f"{configuration.path}: the self-signed certificate"
        write_secret(private_key, made.private_key, place)
        write_secret(certificate, made.certificate, place)
        return [f"{place} {certificate} is made, as no certificate is named: browsers warn of it"]
    return []


def own_names() -> Sequence[str]:
    """The names for a self-signed certificate: this host's, where it can stand in one, and those of loopback."""
    host = socket.gethostname()
    usable = host.isascii() and host and all(part.replace("-", "").isalnum() for part in host.split("."))
    return list(dict.fromkeys([*([host] if usable else []), "localhost", "127.0.0.1", "::1"]))


def write_secret(path: Path, data: bytes, place: str) -> None:
    """Write a file that only its owner may read, whole or not at all. Raises StartError, which names `place`."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise StartError(f"{place}: cannot make {path}: {error.strerror}") from None
