"""The supervisor: opens every socket and file, starts the workers, restarts one that died, reloads and stops them.

It imports no gevent and parses no stranger's byte. It stays root, where it was started so, only to read files again on
SIGHUP. One thread, one loop: signals, the channels to the workers, and a deadline for each.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from wsgate import daemon, databases, log, plan, sockets
from wsgate.control import Channel, Message
from wsgate.daemon import Account
from wsgate.errors import StartError
from wsgate.handover import Crew, Endpoint
from wsgate.log import logger
from wsgate.offer import Offer, Verdict
from wsgate.plan import Plan
from wsgate.worker_process import State, WorkerProcess, WorkerStart

SAME_SIGNAL_SECONDS = 1.0
"""A second signal within this time is the first one again: some callers signal the process and its group."""

WAITING_SECONDS = 2.0
"""How long connections may wait for a worker that is started again; beyond it the others take them."""

SYSLOG_SOCKET = Path("/dev/log")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


WorkerMain = Callable[[WorkerStart], int]
"""The whole life of a worker; what it returns is the exit status of its process."""


class Supervisor:
    """One daemon. `run` returns the exit status; what keeps it from starting is raised as StartError."""

    def __init__(self, path: str, worker: WorkerMain, *, detached: bool = False, pidfile: str = "") -> None:
        self._path = os.path.abspath(path)
        self._worker = worker
        self._detached = detached
        self._pidfile_name = pidfile and os.path.abspath(pidfile)
        self._workers: list[WorkerProcess] = []
        self._stopping = False
        self._served = False
        self._account: Account | None = None
        self._pidfile: daemon.PidFile | None = None
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._files: dict[str, int] = {}
        self._closed: dict[int, list[Endpoint]] = {}
        self._inboxes: list[tuple[socket.socket, socket.socket]] = []
        self._offer: Offer | None = None
        self._reload_wanted = False
        self._log_descriptor: int | None = None
        self._told_to_stop = 0.0
        self._log_target = "stderr"
        self._plan: Plan
        self._wakeup: tuple[socket.socket, socket.socket]

    def run(self, ready: Callable[[], None]) -> int:
        """Start, call `ready` once all workers serve, and stay until told to stop. Raises StartError before that."""
        self._catch_signals()
        try:
            self._plan = plan.read(self._path)
            self._open()
            for worker in self._workers:
                self._start_worker(worker)
            self._serve(ready)
        finally:
            self._close()
        logger.info("wsgate has stopped")
        return 0

    def _open(self) -> None:
        """Everything the workers need. Raises StartError; `_close` undoes what was done."""
        current = self._plan
        self._open_log(current)
        for notice in current.notices:
            logger.warning("%s", notice)
        self._account = daemon.account(current.user, current.group, current.path)
        self._say_who()
        pidfile = self._pidfile_name or current.pidfile
        if pidfile:
            place = "--pidfile" if self._pidfile_name else f"{current.path} [wsgate] pidfile"
            self._pidfile = daemon.PidFile(current.directory / pidfile, place)
        daemon.raise_descriptor_limit()
        self._sockets = sockets.open_sockets(current)
        for place, bound in sockets.where(current, self._sockets).items():
            logger.info("%s: listens on %s", place, bound)
        self._files = sockets.read_files(current)
        databases.give(current, self._account)
        self._workers = [WorkerProcess(number) for number in range(current.workers)]
        if current.workers > 1:
            self._inboxes = [sockets.inbox() for _ in self._workers]

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

    def _start_worker(self, worker: WorkerProcess) -> None:
        if self._offer is not None and not self._offer.begins(worker.number):
            # What starts in the midst of a reload has the old files.
            self._reload_wanted = True
        closed = sockets.reopen(self._sockets, self._closed.pop(worker.number, ()))
        if closed:
            self._closed[worker.number] = closed
        worker.fork(lambda channel: self._become_worker(worker.number, channel))

    def _become_worker(self, number: int, channel: Channel) -> None:
        """In the forked process: leave everything of the supervisor behind, live the worker's life, end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(caught, signal.SIG_IGN)  # the supervisor's word counts, and its end
            for end in self._wakeup:
                end.close()
            for other in self._workers:
                other.close_channel()
            if self._pidfile is not None:
                self._pidfile.forget()
            crew = self._crew(number)
            settings, files = self._plan, self._files
            if self._offer is not None and self._offer.is_on_trial(number):
                settings, files = self._offer.plan, self._offer.files
            sockets.close_all({one: sock for one, sock in self._sockets.items() if one.worker != number})
            start = WorkerStart(
                path=self._path,
                channel=channel,
                sockets={one: sock for one, sock in self._sockets.items() if one.worker == number},
                descriptors=files,
                log_level=settings.log_level,
                log_target=self._log_target,
                log_descriptor=self._log_descriptor,
                account=self._account,
                detached=self._detached,
                crew=crew,
            )
            status = self._worker(start)
        except BaseException:  # nothing above this frame may run twice
            logger.exception("the worker failed")
        finally:
            os._exit(status)

    def _crew(self, number: int) -> Crew:
        """What the worker with this number gets of the others; in its own process, where their inboxes are closed."""
        inbox = None
        outlets = {}
        for other, (reading, writing) in enumerate(self._inboxes):
            if other == number:
                inbox = reading
                writing.close()
            else:
                outlets[other] = writing
                reading.close()
        return Crew(number, len(self._workers), sockets.addresses(self._sockets), inbox, outlets)

    def _serve(self, ready: Callable[[], None]) -> None:
        """The loop; returns when every worker has stopped because it was told to."""
        while True:
            self._wait()
            for number in self._signals():
                if number == signal.SIGHUP:
                    self._reload()
                elif number == signal.SIGUSR1:
                    self._reopen_log()
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self._stop()
            for worker in self._workers:
                status = worker.ended()  # before its last words, so that none is missed
                self._hear(worker, ready)
                if status is not None:
                    self._bury(worker, status)
                self._check_deadline(worker)
            if self._stopping and not any(worker.pid for worker in self._workers):
                return

    def _wait(self) -> None:
        waiting = select.poll()
        waiting.register(self._wakeup[0].fileno(), select.POLLIN)
        for worker in self._workers:
            if worker.channel is not None:
                waiting.register(worker.channel.fileno(), select.POLLIN)
        deadline = min((one.deadline for one in self._workers if one.deadline is not None), default=None)
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
        waiting.poll(None if seconds is None else math.ceil(seconds * 1000))

    def _signals(self) -> bytes:
        """The numbers of the signals that came since the last time, one byte each."""
        try:
            return self._wakeup[0].recv(4096)
        except BlockingIOError:
            return b""

    def _hear(self, worker: WorkerProcess, ready: Callable[[], None]) -> None:
        """Everything that a worker has said."""
        while worker.channel is not None:
            try:
                message = worker.channel.receive()
            except BlockingIOError:
                return
            if message is None:
                worker.close_channel()
            elif message.word == "ready":
                self._worker_ready(worker, ready)
            elif message.word == "failed":
                worker.failure = message.fields.get("text", "")
            elif message.word in ("reloaded", "refused"):
                self._worker_answered(worker, message)

    def _worker_ready(self, worker: WorkerProcess, ready: Callable[[], None]) -> None:
        if worker.state is not State.STARTING:
            return
        worker.state, worker.deadline = State.RUNNING, None
        logger.info("worker %d is ready", worker.pid)
        if not self._served and all(one.state is State.RUNNING for one in self._workers):
            self._served = True
            daemon.notify("READY=1", f"MAINPID={os.getpid()}")
            ready()
        if self._offer is not None and self._offer.is_on_trial(worker.number):
            self._offer.accepted(worker.number)
            self._conclude_reload()
        if self._reload_wanted:
            self._reload()

    def _bury(self, worker: WorkerProcess, status: int) -> None:
        """A worker has ended: it is started again unless it was told to. Raises StartError when not all ever served."""
        had_failed = bool(worker.failure)
        reason = worker.bury(status)
        if self._stopping:
            return
        if not self._served:
            raise StartError(reason)
        delay = worker.wait_for_restart()
        if delay > WAITING_SECONDS and any(other.state is State.RUNNING for other in self._workers):
            self._closed.setdefault(worker.number, []).extend(sockets.close_streams(self._sockets, worker.number))
        logger.error("%s; starting another in %g seconds", reason, delay)
        if self._offer is not None:
            self._offer.ended(worker.number, reason, was_killed=os.WIFSIGNALED(status) and not had_failed)
            self._conclude_reload()
        if self._reload_wanted:
            self._reload()  # which a start that failed would have put off for ever

    def _check_deadline(self, worker: WorkerProcess) -> None:
        if worker.deadline is None or time.monotonic() < worker.deadline:
            return
        worker.deadline = None
        if worker.state is State.WAITING:
            self._start_worker(worker)
        else:
            worker.failure = f"worker {worker.pid} was killed: it did not become ready or stop in time"
            worker.kill()

    def _stop(self) -> None:
        """Tell the workers to stop, or kill them when they were told before."""
        if self._stopping:
            if time.monotonic() - self._told_to_stop < SAME_SIGNAL_SECONDS:
                return
            for worker in self._workers:
                if worker.pid:
                    logger.warning("told twice to stop: worker %d is killed", worker.pid)
                    worker.kill()
            return
        daemon.notify("STOPPING=1")
        logger.info("stopping")
        self._stopping = True
        self._told_to_stop = time.monotonic()
        sockets.close_all(self._sockets)  # or strangers would wait in a queue that nobody serves
        self._sockets = {}
        for worker in self._workers:
            worker.stop(self._plan.drain_timeout)

    def _reload(self) -> None:
        """Read everything again and offer it to the workers; what cannot be used changes nothing."""
        if self._stopping:
            return
        starting = any(worker.state is State.STARTING for worker in self._workers)
        self._reload_wanted = starting or self._offer is not None
        if self._reload_wanted:
            return
        daemon.notify_reloading()
        files: dict[str, int] = {}
        try:
            new = plan.read(self._path)
            files = sockets.read_files(new)
            databases.give(new, self._account)
            self._open_log(new)
        except StartError as error:
            sockets.close_files(files)
            logger.error("reload refused, everything stays as it is: %s", error)
            daemon.notify("READY=1")
            return
        for notice in new.notices:
            logger.warning("%s", notice)
        if new.endpoints != self._plan.endpoints:
            logger.warning("%s: changed addresses and ports take effect with a restart", self._path)
        serving = [worker for worker in self._workers if worker.state is State.RUNNING]
        self._offer = Offer(new, files, [worker.number for worker in serving])
        if not serving:
            logger.warning("no worker is there to judge what is to be reloaded: the next one starts with it")
        for worker in serving:
            for name, descriptor in files.items():
                worker.tell("file", descriptor, name=name)
            worker.tell("log", self._log_descriptor, level=new.log_level, target=self._log_target)
            worker.tell("reload")

    def _reopen_log(self) -> None:
        """The log file anew, after it was moved away (SIGUSR1); nothing else is read again."""
        try:
            self._open_log(self._plan)
        except StartError as error:
            logger.error("%s", error)
            return
        for worker in self._workers:
            worker.tell("log", self._log_descriptor, level=self._plan.log_level, target=self._log_target)

    def _worker_answered(self, worker: WorkerProcess, message: Message) -> None:
        if self._offer is None:
            return
        if message.word == "reloaded":
            self._offer.accepted(worker.number)
        else:
            self._offer.refused(worker.number, message.fields.get("text", ""))
        self._conclude_reload()

    def _conclude_reload(self) -> None:
        """Once all have answered: workers to come get the new files if they could be used."""
        offer = self._offer
        if offer is None or offer.verdict is Verdict.OPEN:
            return
        self._offer = None
        if offer.verdict is Verdict.TAKEN:
            sockets.close_files(self._files)
            self._plan, self._files = offer.plan, offer.files
            logger.info("reloaded %s", self._path)
        else:
            sockets.close_files(offer.files)
            logger.error("reload refused, everything stays as it is: %s", offer.refusals[0])
        daemon.notify("READY=1")
        if self._reload_wanted:
            self._reload()

    def _close(self) -> None:
        """Leave nothing behind: no worker, socket, memory file or pidfile."""
        for worker in self._workers:
            worker.close_channel()
            worker.kill()
        for worker in self._workers:
            if worker.pid:
                os.waitpid(worker.pid, 0)
        for pair in self._inboxes:
            for end in pair:
                end.close()
        if self._offer is not None:
            sockets.close_files(self._offer.files)
        sockets.close_all(self._sockets)
        sockets.close_files(self._files)
        if self._pidfile is not None:
            self._pidfile.release()
        signal.set_wakeup_fd(-1)
        for end in self._wakeup:
            end.close()
