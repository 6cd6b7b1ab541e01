"""A worker: gives up root, builds a gateway on the sockets it was handed, and does what the supervisor says.

Its process is a fork of the supervisor; what needs gevent is imported here, after the fork. All code, and the files of
the web phone, are read before root is given up, because the new user may not be able to read where they lie.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wsgate import daemon, log
from wsgate.control import Message
from wsgate.errors import WsgateError, missing_module
from wsgate.handover import INI, Crew, Endpoint, Files
from wsgate.log import logger
from wsgate.worker_process import WorkerStart

if TYPE_CHECKING:
    from wsgate.config import Configuration

GOING_AWAY = 1001
"""The WebSocket close code of a gateway that ends (RFC 6455 §7.4.1, rule H3)."""


LOADED_LATE = (
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.punycode",
    "encodings.utf_8_sig",
    "gevent.resolver.thread",
    "gevent.threadpool",
    "linecache",
    "pprint",
    "stringprep",
    "traceback",
    "unicodedata",
)
"""Modules that Python and gevent would load when they are first needed."""

DNS_TYPES = ("A", "AAAA", "CNAME", "NAPTR", "NS", "OPT", "SOA", "SRV")
"""Types of DNS records that answers hold; dnspython would load the code for each when it meets the first one."""


GARBAGE_THRESHOLD = 20000
"""New container objects between two looks for cycles among the young ones."""


class GatewayLike(Protocol):
    """What a worker asks of a gateway. `start` and `reload` raise WsgateError."""

    def start(self) -> None:
        """Begin to serve."""

    def stop(self, reason_code: int) -> None:
        """End gracefully; returns when all is closed or `drain_timeout` is over."""

    def reload(self, configuration: Configuration, files: Files) -> None:
        """Take new settings and files without dropping a connection."""


GatewayFactory = Callable[["Configuration", Mapping[Endpoint, socket.socket], Files, Crew], GatewayLike]


def real_gateway() -> GatewayFactory:
    """The gateway's class, and with it the files of the web phone, read while root may do so."""
    from wsgate import web
    from wsgate.gateway import Gateway

    web.phone_files()
    factory: GatewayFactory = Gateway
    return factory


def load_late() -> None:
    """Import what would be imported later, when the new user may not read it any more."""
    from dns.rdata import get_rdata_class
    from dns.rdataclass import RdataClass
    from dns.rdatatype import RdataType
    from gevent import get_hub

    get_hub()
    for name in LOADED_LATE:
        importlib.import_module(name)
    for kind in DNS_TYPES:
        get_rdata_class(RdataClass.IN, RdataType[kind])  # type: ignore[no-untyped-call]


def main(start: WorkerStart, load_gateway: Callable[[], GatewayFactory] = real_gateway) -> int:
    """The life of a worker process; the exit status."""
    if start.detached:
        daemon.to_null()
    files = Files(Path(start.path).parent, start.descriptors)
    try:
        try:
            load_late()
            factory = load_gateway()
        except ImportError as error:
            raise missing_module(error) from error
        Worker(start, files, factory).run()
    except WsgateError as error:
        start.channel.send("failed", text=files.named(str(error)))
        return 1
    return 0


class Worker:
    """One gateway and the channel to the supervisor."""

    def __init__(self, start: WorkerStart, files: Files, factory: GatewayFactory) -> None:
        """Become the configured user and build the gateway. Raises WsgateError."""
        from wsgate.ini import load

        self._path = Path(start.path)
        self._channel = start.channel
        self._files = files
        self._offered: dict[str, int] = {}
        if start.log_descriptor is not None:
            log.start(start.log_level, start.log_target, start.log_descriptor)
        if start.account is not None:
            daemon.become(start.account)
        self._gateway = factory(load(self._path, self._files.path(INI)), start.sockets, self._files, start.crew)

    def run(self) -> None:
        """Serve until the supervisor says stop or is gone. Raises WsgateError when the gateway cannot start."""
        from gevent.socket import wait_read

        self._gateway.start()
        # What was loaded stays: the collector need not look at it again, and cycles are rare (about 5 % of the CPU).
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_THRESHOLD, 20, 50)
        self._channel.send("ready")
        going = True
        while going:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                wait_read(self._channel.fileno())
            else:
                going = message is not None and self._obey(message)
        self._gateway.stop(GOING_AWAY)

    def _obey(self, message: Message) -> bool:
        """One message of the supervisor; False when it says stop."""
        if message.word == "file" and message.descriptor is not None:
            self._offered[message.fields["name"]] = message.descriptor
        elif message.word == "log":
            self._reopen_log(message)
        elif message.word == "reload":
            self._reload()
        return message.word != "stop"

    def _reopen_log(self, message: Message) -> None:
        try:
            log.start(message.fields["level"], message.fields["target"], message.descriptor)
        except OSError as error:
            logger.error("cannot log to %s: %s", message.fields["target"], error.strerror)

    def _reload(self) -> None:
        """Take the files that were offered; when they cannot be used, keep those that are in use."""
        from wsgate.ini import load

        files, self._offered = Files(self._path.parent, self._offered), {}
        try:
            self._gateway.reload(load(self._path, files.path(INI)), files)
        except WsgateError as error:
            self._channel.send("refused", text=files.named(str(error)))
            _close(files)
            return
        self._files, old = files, self._files
        _close(old)
        self._channel.send("reloaded")


def _close(files: Files) -> None:
    for descriptor in files.descriptors.values():
        os.close(descriptor)
