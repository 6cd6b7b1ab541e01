"""What a daemon needs of Unix: another user, a pidfile, leaving the terminal, systemd's notifications, limits."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import pwd
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from wsgate.errors import StartError

AUTO_USERS = ("wsgate", "nobody")
"""Whom `user = auto` means: the first that exists."""

UID_MAP = Path("/proc/self/uid_map")


class Account(NamedTuple):
    """A user and group to become."""

    user: str
    uid: int
    gid: int


def account(user: str | None, group: str | None, path: str) -> Account | None:
    """The account for the workers; None: stay who we are (not root, or `user` is empty). Raises StartError.

    `user` and `group` None mean auto. `path` is the ini file that an error names.
    """
    if user == "" or os.geteuid() != 0:
        return None
    entry = _auto_user() if user is None else _user(user, path)
    if entry is None:
        return None
    gid = entry.pw_gid
    if group:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise StartError(
                f"{path} [wsgate] group: there is no group {group!r} (allowed: auto, or a group)"
            ) from None
    return Account(entry.pw_name, entry.pw_uid, gid)


def _user(user: str, path: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise StartError(
            f"{path} [wsgate] user: there is no user {user!r} (allowed: auto, an existing user, or empty to stay root)"
        ) from None


def _auto_user() -> pwd.struct_passwd | None:
    """The first of AUTO_USERS that exists and that this user namespace knows (a rootless container may know none)."""
    for name in AUTO_USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if mapped(entry.pw_uid, UID_MAP.read_text(encoding="ascii")):
                return entry
    return None


def mapped(uid: int, uid_map: str) -> bool:
    """True when `uid` exists in the user namespace whose /proc/self/uid_map is `uid_map` (user_namespaces(7))."""
    ranges = (tuple(map(int, line.split())) for line in uid_map.splitlines())
    return any(first <= uid < first + count for first, _, count in ranges)


def become(target: Account) -> None:
    """Give up root for good: groups, group, user, in this order. Raises StartError."""
    try:
        os.initgroups(target.user, target.gid)
        os.setresgid(target.gid, target.gid, target.gid)
        os.setresuid(target.uid, target.uid, target.uid)
    except OSError as error:
        raise StartError(f"cannot become the user {target.user}: {error.strerror}") from None


class PidFile:
    """A pidfile, locked while its process lives, so that a second daemon notices and a dead one leaves no trap."""

    def __init__(self, path: Path, place: str) -> None:
        """Take the file. Raises StartError with `place` when another process holds it or it cannot be written."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise StartError(f"{place}: cannot write {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(self._descriptor, 20).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise StartError(f"{place}: wsgate is running already, as process {owner}, and holds {path}") from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def forget(self) -> None:
        """Close it in a child process; the parent's lock stays."""
        os.close(self._descriptor)

    def release(self) -> None:
        """Remove the file and let go of it."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


def to_null() -> None:
    """Leave the terminal: standard input, output and error are /dev/null from here on."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def detach() -> Callable[[], None]:
    """Fork twice and return in the daemon alone: a function to call once it is ready.

    The process that was started ends with 0 when the daemon called that function, with 1 when the daemon ended before
    (which has then said why on the standard error that both share).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child != 0:
        os.close(writer)
        report = os.read(reader, 1)
        os.waitpid(child, 0)
        os._exit(0 if report else 1)
    os.close(reader)
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    os.chdir("/")
    os.umask(0o022)

    def ready() -> None:
        to_null()
        os.write(writer, b"r")
        os.close(writer)

    return ready


def notify(*lines: str) -> None:
    """Tell systemd (sd_notify(3)); without $NOTIFY_SOCKET nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto("\n".join(lines).encode(), target)


def notify_reloading() -> None:
    """Tell systemd that a reload has begun; READY=1 ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def raise_descriptor_limit() -> int:
    """Lift the soft limit of open files to the hard one, for as many connections as may be; the limit then in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
