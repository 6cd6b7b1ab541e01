"""The channel between the workers' directories: datagrams on Unix sockets that the supervisor made. Nothing blocks.

Each worker reads its own inbox and writes into those of the others. What does not fit at once waits in `Sharing`, whose
queues are bounded; a worker that does not read costs the others nothing but that.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gevent
from gevent import get_hub

from wsgate.addr import Address
from wsgate.log import logger
from wsgate.metrics import Counters
from wsgate.net.clock import LoopTimer, now
from wsgate.sharing import MAX_MESSAGE_BYTES, Sharing

MESSAGES_PER_TURN = 64
"""How many messages are read, and sent to one worker, before others get their turn."""

RETRY_SECONDS = 0.02
"""How soon what did not fit into an inbox is tried again."""

_READ = 1


class Mesh:
    """Drives `sharing`. `ended` gives the shared dialogs that ended here; `learnt` is called when something came."""

    def __init__(
        self,
        sharing: Sharing,
        inbox: socket.socket,
        outlets: Mapping[int, socket.socket],
        ended: Callable[[], Iterable[Any]],
        learnt: Callable[[], None],
        counters: Counters,
    ) -> None:
        self._sharing = sharing
        self._inbox = inbox
        self._outlets = outlets
        self._ended = ended
        self._learnt = learnt
        self._counters = counters
        self._retry = LoopTimer(self.flush)
        self._greenlet: gevent.Greenlet | None = None
        self.adopt: Callable[[socket.socket, Address], None] | None = None
        """Takes the streams of TURN clients that other workers pass on."""

    def start(self) -> None:
        """Ask the others what they know, and begin to read."""
        self._sharing.hello()
        self.flush()
        self._greenlet = gevent.spawn(self._read)

    def stop(self) -> None:
        """Say and hear nothing any more."""
        self._retry.stop()
        if self._greenlet is not None:
            self._greenlet.kill()

    def flush(self) -> None:
        """Send what changed, as far as it fits."""
        self._sharing.tell_changes(now())
        self._sharing.tell_ended(self._ended())
        # No short-cut here: each of the others is to have its turn.
        done = [self._send(worker, outlet) for worker, outlet in self._outlets.items()]
        if not all(done):
            self._retry.arm(now() + RETRY_SECONDS)

    def pass_stream(self, worker: int, client: Address, sock: socket.socket) -> bool:
        """Give `worker` the stream of a TURN client (RFC 6062; rule C1); False where it cannot take it now."""
        try:
            socket.send_fds(self._outlets[worker], [json.dumps(client).encode("ascii")], [sock.fileno()])
        except (KeyError, OSError):
            return False
        return True

    def _take_stream(self, descriptor: int, client: bytes) -> None:
        sock = socket.socket(fileno=descriptor)
        if self.adopt is None:
            sock.close()
            return
        host, port = json.loads(client)
        self.adopt(sock, Address(str(host), int(port)))

    def _send(self, worker: int, outlet: socket.socket) -> bool:
        """True when nothing is left for this worker."""
        for _ in range(MESSAGES_PER_TURN):
            data = self._sharing.next_message(worker, now())
            if data is None:
                return True
            try:
                outlet.send(data)
            except BlockingIOError:
                self._sharing.put_back(worker, data)
                return False
            except OSError as error:
                self._counters.count("directory_messages_failed")
                logger.debug("to worker %d: %s", worker, error.strerror)
        return False

    def _read(self) -> None:
        hub = get_hub()
        watcher = hub.loop.io(self._inbox.fileno(), _READ)
        try:
            while True:
                hub.wait(watcher)
                self.drain()
                gevent.sleep(0)
        finally:
            watcher.stop()
            watcher.close()

    def drain(self) -> None:
        """Take what the others have told up to now."""
        heard = False
        try:
            for _ in range(MESSAGES_PER_TURN):
                data, descriptors, _, _ = socket.recv_fds(self._inbox, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
                if descriptors:
                    self._take_stream(descriptors[0], data)
                    continue
                heard = True
                self._sharing.take(data, now())
        except BlockingIOError:
            pass
        except Exception:
            logger.exception("internal error on a message of another worker")
            self._counters.count("internal_errors")
        if heard:
            self._learnt()
