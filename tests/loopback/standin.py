"""The real supervisor and worker with a small gateway in place of the real one: `standin.py -c FILE [--daemon]`.

A connection to the first listener gets one JSON line of facts. Files beside the ini make things happen while they
exist: `start-fails`, `start-dies`, `reload-fails` and `reload-dies`; with `unusable-TEXT` a file that says TEXT cannot
be used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from wsgate import daemon
from wsgate.config import Configuration
from wsgate.errors import StartError, WsgateError
from wsgate.handover import Crew, Endpoint, Files
from wsgate.log import logger
from wsgate.supervisor import Supervisor
from wsgate.worker import main as worker_main
from wsgate.worker_process import WorkerStart


class StandIn:
    """A gateway that only tells what it was handed."""

    make_server: Callable[..., Any]

    def __init__(
        self, configuration: Configuration, endpoints: Mapping[Endpoint, socket.socket], files: Files, crew: Crew
    ) -> None:
        self.configuration, self.endpoints, self.files = configuration, endpoints, files
        self.crew = crew
        self.reloads = 0

    def start(self) -> None:
        """Serve, unless told to fail."""
        if (self.configuration.directory / "start-fails").exists():
            raise StartError(f"the stand-in cannot read {self.files.path('wsgate.key')}")
        if (self.configuration.directory / "start-dies").exists():
            os._exit(7)
        self.check(self.configuration, self.files)
        listening = next(sock for endpoint, sock in self.endpoints.items() if endpoint.kind == "listener")
        self.server = self.make_server(listening, self.tell)
        self.server.start()

    def check(self, configuration: Configuration, files: Files) -> None:
        """Raise StartError for a file that cannot be used."""
        for name, text in self.contents(configuration, files).items():
            if (configuration.directory / f"unusable-{text[:20]}").exists():
                raise StartError(f"the stand-in cannot use {files.path(name)}")

    @staticmethod
    def contents(configuration: Configuration, files: Files) -> dict[str, str]:
        """What the files say that options name."""
        read = {}
        for reference in configuration.files():
            with open(files.path(reference.name), encoding="utf-8") as file:
                read[reference.name] = file.read()
        return read

    def tell(self, connection: socket.socket, address: object) -> None:
        """One line of facts about this process."""
        facts = {
            "pid": os.getpid(),
            "supervisor": os.getppid(),
            "uid": os.getuid(),
            "groups": os.getgroups(),
            "number": self.crew.number,
            "reloads": self.reloads,
            "files": self.contents(self.configuration, self.files),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "endpoints": [[endpoint.kind, sock.getsockname()[1]] for endpoint, sock in self.endpoints.items()],
        }
        logger.info("asked")
        connection.sendall(json.dumps(facts).encode() + b"\n")
        connection.close()

    def stop(self, reason_code: int) -> None:
        self.server.stop()
        (self.configuration.directory / "stopped").write_text(str(reason_code))

    def reload(self, configuration: Configuration, files: Files) -> None:
        if (configuration.directory / "reload-fails").exists():
            raise WsgateError(f"the stand-in cannot use {files.path('wsgate.key')}")
        if (configuration.directory / "reload-dies").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        self.check(configuration, files)
        self.configuration, self.files = configuration, files
        self.reloads += 1


def load() -> type[StandIn]:
    """What needs gevent, after the fork and before root is given up."""
    from gevent import socket
    from gevent.server import StreamServer

    class Loaded(StandIn):
        @staticmethod
        def make_server(listening: Any, handle: Any) -> StreamServer:
            return StreamServer(socket.socket(fileno=os.dup(listening.fileno())), handle)

    return Loaded


def life(start: WorkerStart) -> int:
    """A worker's life with the stand-in."""
    return worker_main(start, load)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-c", dest="config", required=True)
    parser.add_argument("--daemon", action="store_true")
    options = parser.parse_args()
    try:
        supervisor = Supervisor(options.config, life, detached=options.daemon)
        sys.exit(supervisor.run(daemon.detach() if options.daemon else lambda: None))
    except WsgateError as problem:
        print(f"wsgate: {problem}", file=sys.stderr)
        sys.exit(1)
