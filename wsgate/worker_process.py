"""One worker as the supervisor sees it: its process, the channel to it, what is waited for, and its next start."""

from __future__ import annotations

import enum
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from wsgate import control
from wsgate.control import Channel
from wsgate.daemon import Account
from wsgate.handover import Crew, Endpoint
from wsgate.log import logger

START_SECONDS = 60.0
"""How long a worker may take to become ready."""

STOP_SECONDS = 10.0
"""How long, beyond `drain_timeout`, a worker may take to stop before it is killed."""


class WorkerStart(NamedTuple):
    """All that a new worker gets, in the process forked for it."""

    path: str
    channel: Channel
    sockets: dict[Endpoint, socket.socket]
    descriptors: dict[str, int]
    log_level: str
    log_target: str
    log_descriptor: int | None
    account: Account | None
    detached: bool
    crew: Crew = Crew()


class RestartDelay:
    """How long to wait before a worker that died is started again: doubles while it keeps dying young."""

    FIRST_SECONDS = 0.5
    MOST_SECONDS = 30.0
    GOOD_LIFE_SECONDS = 60.0

    def __init__(self) -> None:
        self._next = self.FIRST_SECONDS

    def after(self, lived: float) -> float:
        """The delay in seconds after a worker that lived `lived` seconds."""
        if lived >= self.GOOD_LIFE_SECONDS:
            self._next = self.FIRST_SECONDS
        delay = self._next
        self._next = min(2 * delay, self.MOST_SECONDS)
        return delay


class State(enum.Enum):
    """What the supervisor waits for."""

    STARTING = "the worker has not said ready"
    RUNNING = "the worker serves"
    WAITING = "the worker died and is started again later"
    STOPPING = "the worker was told to stop"


class WorkerProcess:
    """The worker with this number, through all its lives. `pid` is 0 while there is no process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = State.WAITING
        self.pid = 0
        self.channel: Channel | None = None
        self.deadline: float | None = None
        self.failure = ""
        self._born = 0.0
        self._delay = RestartDelay()

    def fork(self, life: Callable[[Channel], None]) -> None:
        """Start a process in which `life` runs with its end of a new channel, and does not return."""
        ours, theirs = control.pair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            life(theirs)
        theirs.close()
        self.channel = ours
        self.state = State.STARTING
        self._born = time.monotonic()
        self.deadline = self._born + START_SECONDS

    def tell(self, word: str, descriptor: int | None = None, **fields: str) -> None:
        """One message to the process; that it cannot be had is logged."""
        if self.channel is None:
            return
        try:
            self.channel.send(word, descriptor, **fields)
        except OSError as error:
            logger.error("worker %d does not listen: %s", self.pid, error.strerror or error)

    def ended(self) -> int | None:
        """The wait status of the process where it has ended since the last time, else None. Then `bury` it."""
        if self.pid == 0:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return status if pid else None

    def bury(self, status: int) -> str:
        """Forget the process that ended; returns why it did, in words."""
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        reason = self.failure or f"worker {self.pid} ended with {how}"
        self.pid, self.failure, self.deadline = 0, "", None
        self.close_channel()
        return reason

    def wait_for_restart(self) -> float:
        """Start again later: `deadline` says when. Returns in how many seconds."""
        now = time.monotonic()
        delay = self._delay.after(now - self._born)
        self.state, self.deadline = State.WAITING, now + delay
        return delay

    def stop(self, drain_timeout: float) -> None:
        """Tell the process to end; where there is none, none is started any more."""
        self.state = State.STOPPING
        self.deadline = time.monotonic() + drain_timeout + STOP_SECONDS if self.pid else None
        self.tell("stop")

    def kill(self) -> None:
        """End the process at once."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)

    def close_channel(self) -> None:
        """The process has nothing more to say."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
