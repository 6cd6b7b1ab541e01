"""The supervisor: opens every socket and file, starts a worker, restarts one that died, reloads and stops it.

It imports no gevent and parses no stranger's byte. It stays root, where it was started so, only to read files again on
SIGHUP. One thread, one loop: signals, the channel to the worker, and two deadlines.
"""

from __future__ import annotations

import enum
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from wsgate import control, daemon, databases, log, plan, sockets
from wsgate.control import Channel, Message
from wsgate.daemon import Account
from wsgate.errors import StartError
from wsgate.handover import Endpoint
from wsgate.log import logger
from wsgate.plan import Plan

START_SECONDS = 60.0
"""How long a worker may take to become ready."""

SAME_SIGNAL_SECONDS = 1.0
"""A second signal within this time is the first one again: some callers signal the process and its group."""

STOP_SECONDS = 10.0
"""How long, beyond `drain_timeout`, a worker may take to stop before it is killed."""

SYSLOG_SOCKET = Path("/dev/log")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


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


WorkerMain = Callable[[WorkerStart], int]
"""The whole life of a worker; what it returns is the exit status of its process."""


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
    """What the supervisor is waiting for."""

    STARTING = "the worker has not said ready"
    RUNNING = "the worker serves"
    WAITING = "the worker died and is started again later"
    STOPPING = "the worker was told to stop"


class Supervisor:
    """One daemon. `run` returns the exit status; what keeps it from starting is raised as StartError."""

    def __init__(self, path: str, worker: WorkerMain, *, detached: bool = False, pidfile: str = "") -> None:
        self._path = os.path.abspath(path)
        self._worker = worker
        self._detached = detached
        self._pidfile_name = pidfile and os.path.abspath(pidfile)
        self._state = State.STARTING
        self._served = False
        self._account: Account | None = None
        self._pidfile: daemon.PidFile | None = None
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._files: dict[str, int] = {}
        self._offered: tuple[Plan, dict[str, int]] | None = None
        self._reload_wanted = False
        self._log_descriptor: int | None = None
        self._pid = 0
        self._channel: Channel | None = None
        self._told_to_stop = 0.0
        self._deadline: float | None = None
        self._born = 0.0
        self._delay = RestartDelay()
        self._failure = ""
        self._status = 0
        self._log_target = "stderr"
        self._plan: Plan
        self._wakeup: tuple[socket.socket, socket.socket]

    def run(self, ready: Callable[[], None]) -> int:
        """Start, call `ready` once the worker serves, and stay until told to stop. Raises StartError before that."""
        self._catch_signals()
        try:
            self._plan = plan.read(self._path)
            self._open()
            self._start_worker()
            self._serve(ready)
        finally:
            self._close()
        logger.info("wsgate has stopped")
        return 0

    def _open(self) -> None:
        """Everything a worker needs. Raises StartError; `_close` undoes what was done."""
        current = self._plan
        self._open_log(current)
        for notice in current.notices:
            logger.warning("%s", notice)
        self._account = daemon.account(current.user, current.group, current.path)
        self._say_who()
        pidfile = self._pidfile_name or current.pidfile
        if pidfile:
            self._pidfile = daemon.PidFile(current.directory / pidfile)
        daemon.raise_descriptor_limit()
        self._sockets = sockets.open_sockets(current)
        self._files = sockets.read_files(current)
        databases.give(current, self._account)

    def _open_log(self, current: Plan) -> None:
        """Send this process's log where the plan says, and keep a file's descriptor for workers. Raises StartError."""
        target = current.log_target
        if self._detached and target == "stderr":
            target = "syslog" if SYSLOG_SOCKET.exists() else os.devnull
        place = f"{current.path} [wsgate] log_target"
        descriptor = None
        try:
            if target not in ("stderr", "syslog"):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                descriptor = os.open(current.directory / target, flags, 0o640)
            log.start(current.log_level, target, None if descriptor is None else os.dup(descriptor))
        except OSError as error:
            raise StartError(f"{place}: cannot log to {target}: {error.strerror}") from None
        if self._log_descriptor is not None:
            os.close(self._log_descriptor)
        self._log_descriptor = descriptor
        self._log_target = target

    def _say_who(self) -> None:
        if self._account is not None:
            logger.info("workers run as the user %s (uid %d, gid %d)", *self._account)
        elif os.geteuid() == 0:
            logger.warning("workers stay root: [wsgate] user is empty, or no other user is known here")
        elif self._plan.user:
            logger.warning("[wsgate] user = %s: not started as root, so the user stays as it is", self._plan.user)

    def _catch_signals(self) -> None:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._wakeup = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: None)

    def _start_worker(self) -> None:
        ours, theirs = control.pair()
        self._pid = os.fork()
        if self._pid == 0:
            self._become_worker(ours, theirs)
        theirs.close()
        self._channel = ours
        self._state = State.STARTING
        self._born = time.monotonic()
        self._deadline = self._born + START_SECONDS

    def _become_worker(self, ours: Channel, theirs: Channel) -> None:
        """In the forked process: leave everything of the supervisor behind, live the worker's life, end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # the supervisor's word counts, and its end
            for end in self._wakeup:
                end.close()
            ours.close()
            if self._pidfile is not None:
                self._pidfile.forget()
            start = WorkerStart(
                path=self._path,
                channel=theirs,
                sockets=self._sockets,
                descriptors=self._files,
                log_level=self._plan.log_level,
                log_target=self._log_target,
                log_descriptor=self._log_descriptor,
                account=self._account,
                detached=self._detached,
            )
            status = self._worker(start)
        except BaseException:  # nothing above this frame may run twice
            logger.exception("the worker failed")
        finally:
            os._exit(status)

    def _serve(self, ready: Callable[[], None]) -> None:
        """The loop; returns when the worker has stopped because it was told to."""
        while True:
            self._wait()
            for number in self._signals():
                if number == signal.SIGHUP:
                    self._reload()
                elif number in (signal.SIGTERM, signal.SIGINT) and self._stop():
                    return
            self._hear(ready)
            if self._worker_ended() and self._bury():
                return
            self._check_deadline()

    def _wait(self) -> None:
        waiting = select.poll()
        waiting.register(self._wakeup[0].fileno(), select.POLLIN)
        if self._channel is not None:
            waiting.register(self._channel.fileno(), select.POLLIN)
        seconds = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        waiting.poll(None if seconds is None else math.ceil(seconds * 1000))

    def _signals(self) -> bytes:
        """The numbers of the signals that came since the last time, one byte each."""
        try:
            return self._wakeup[0].recv(4096)
        except BlockingIOError:
            return b""

    def _hear(self, ready: Callable[[], None]) -> None:
        """Everything that the worker has said."""
        while self._channel is not None:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                return
            if message is None:
                self._close_channel()
            elif message.word == "ready":
                self._worker_ready(ready)
            elif message.word == "failed":
                self._failure = message.fields.get("text", "")
            elif message.word in ("reloaded", "refused"):
                self._worker_answered(message)

    def _worker_ready(self, ready: Callable[[], None]) -> None:
        if self._state is not State.STARTING:
            return
        self._state, self._deadline = State.RUNNING, None
        logger.info("worker %d is ready", self._pid)
        if not self._served:
            self._served = True
            daemon.notify("READY=1", f"MAINPID={os.getpid()}")
            ready()
        if self._reload_wanted:
            self._reload()

    def _worker_ended(self) -> bool:
        """True when the worker's process has ended (its status is then in `_status`)."""
        if self._pid == 0:
            return False
        pid, self._status = os.waitpid(self._pid, os.WNOHANG)
        return pid != 0

    def _bury(self) -> bool:
        """The worker has ended: True when that was wanted. Raises StartError when it never served."""
        code = os.waitstatus_to_exitcode(self._status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        pid, self._pid = self._pid, 0
        self._close_channel()
        self._drop_offer()
        if self._state is State.STOPPING:
            return True
        reason = self._failure or f"worker {pid} ended with {how}"
        self._failure = ""
        if not self._served:
            raise StartError(reason)
        now = time.monotonic()
        delay = self._delay.after(now - self._born)
        logger.error("%s; starting another in %g seconds", reason, delay)
        self._state, self._deadline = State.WAITING, now + delay
        return False

    def _check_deadline(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        self._deadline = None
        if self._state is State.WAITING:
            self._start_worker()
        else:
            self._failure = f"worker {self._pid} was killed: it did not become ready or stop in time"
            os.kill(self._pid, signal.SIGKILL)

    def _stop(self) -> bool:
        """Tell the worker to stop, or kill it when it was told before. True when there is none to wait for."""
        if self._pid == 0:
            return True
        if self._state is State.STOPPING:
            if time.monotonic() - self._told_to_stop < SAME_SIGNAL_SECONDS:
                return False
            logger.warning("told twice to stop: worker %d is killed", self._pid)
            os.kill(self._pid, signal.SIGKILL)
            return False
        daemon.notify("STOPPING=1")
        logger.info("stopping")
        self._state = State.STOPPING
        self._told_to_stop = time.monotonic()
        self._deadline = self._told_to_stop + self._plan.drain_timeout + STOP_SECONDS
        sockets.close_all(self._sockets)  # or strangers would wait in a queue that nobody serves
        self._sockets = {}
        self._tell("stop")
        return False

    def _tell(self, word: str, descriptor: int | None = None, **fields: str) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(word, descriptor, **fields)
        except OSError as error:
            logger.error("worker %d does not listen: %s", self._pid, error.strerror or error)

    def _reload(self) -> None:
        """Read everything again and offer it to the worker; what cannot be used changes nothing."""
        if self._state is State.STOPPING:
            return
        self._reload_wanted = self._state is State.STARTING or self._offered is not None
        if self._reload_wanted:
            return
        daemon.notify_reloading()
        try:
            new = plan.read(self._path)
            files = sockets.read_files(new)
            databases.give(new, self._account)
            self._open_log(new)
        except StartError as error:
            logger.error("reload refused, everything stays as it is: %s", error)
            daemon.notify("READY=1")
            return
        for notice in new.notices:
            logger.warning("%s", notice)
        if new.endpoints != self._plan.endpoints:
            logger.warning("%s: changed addresses and ports take effect with a restart", self._path)
        self._offered = (new, files)
        if self._state is State.WAITING:
            self._accept_offer()
            return
        for name, descriptor in files.items():
            self._tell("file", descriptor, name=name)
        self._tell("log", self._log_descriptor, level=new.log_level, target=self._log_target)
        self._tell("reload")

    def _worker_answered(self, message: Message) -> None:
        if message.word == "reloaded":
            self._accept_offer()
        else:
            self._drop_offer()
            logger.error("reload refused, everything stays as it is: %s", message.fields.get("text", ""))
            daemon.notify("READY=1")
        if self._reload_wanted:
            self._reload()

    def _accept_offer(self) -> None:
        if self._offered is not None:
            sockets.close_files(self._files)
            self._plan, self._files = self._offered
            self._offered = None
        logger.info("reloaded %s", self._path)
        daemon.notify("READY=1")

    def _drop_offer(self) -> None:
        if self._offered is not None:
            sockets.close_files(self._offered[1])
            self._offered = None

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _close(self) -> None:
        """Leave nothing behind: no worker, socket, memory file or pidfile."""
        self._close_channel()
        if self._pid != 0:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._drop_offer()
        sockets.close_all(self._sockets)
        sockets.close_files(self._files)
        if self._pidfile is not None:
            self._pidfile.release()
        signal.set_wakeup_fd(-1)
        for end in self._wakeup:
            end.close()
