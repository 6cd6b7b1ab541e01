"""The command `wsgate`: `-c FILE` runs the daemon, `user add|del|list` edits the embedded registrar's user file,
`turn-credentials` and `turn-test` try a TURN server."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsgate import __version__, daemon, worker
from wsgate.errors import ConfigurationError, StartError, WsgateError, missing_module
from wsgate.handover import FileReference, Files
from wsgate.supervisor import Supervisor

if TYPE_CHECKING:
    from wsgate.config import Configuration

MAX_PASSWORD_CHARACTERS = 1024

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 with one line on standard error (2 for wrong usage)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["user"]:
            return _user(_user_parser().parse_args(words[1:]))
        if words[:1] in (["turn-credentials"], ["turn-test"]):
            return _turn(words)
        return _daemon(_daemon_parser().parse_args(words))
    except ImportError as error:
        print(f"wsgate: {missing_module(error)}", file=sys.stderr)
        return 1
    except WsgateError as error:
        print(f"wsgate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED


def _daemon_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsgate",
        description="SIP over WebSocket gateway: browsers use the SIP servers a company already has.",
        epilog="Users of the embedded registrar: wsgate user --help. A try of a TURN server:"
        " wsgate turn-credentials --help, wsgate turn-test --help",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="the ini file")
    parser.add_argument("--check-config", action="store_true", help="read the ini file, say what is wrong, and end")
    parser.add_argument("--daemon", action="store_true", help="leave the terminal once everything runs")
    parser.add_argument("--pidfile", metavar="FILE", default="", help="instead of [wsgate] pidfile")
    parser.add_argument("--version", action="version", version=f"wsgate {__version__}")
    return parser


def _user_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wsgate user", description="Edit the user file ([registrar] users).")
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|del|list")
    for action, text in (("add", "add a user, or change the password"), ("del", "remove a user"), ("list", "show all")):
        sub = actions.add_parser(action, help=text, description=text)
        sub.add_argument("-c", "--config", metavar="FILE", required=True, help="the ini file")
        if action != "list":
            sub.add_argument("user", metavar="USER", help="the name, without the domain")
        if action == "add":
            help_text = "read the password from standard input, one line, instead of asking for it"
            sub.add_argument("--password-stdin", action="store_true", help=help_text)
    return parser


def _daemon(options: argparse.Namespace) -> int:
    if not options.config:
        raise StartError("which ini file? wsgate -c FILE (see wsgate --help)")
    if options.check_config:
        return _check(options.config)
    supervisor = Supervisor(options.config, worker.main, detached=options.daemon, pidfile=options.pidfile)
    return supervisor.run(daemon.detach() if options.daemon else lambda: None)


def _check(path: str) -> int:
    """Read and judge the ini file and the files it names, and see whether its user exists. Raises WsgateError."""
    from wsgate.config import SELF_SIGNED_CERTIFICATE, SELF_SIGNED_PRIVATE_KEY
    from wsgate.ini import load

    configuration = load(path)
    made_at_start = {configuration.process.key_file, SELF_SIGNED_CERTIFICATE, SELF_SIGNED_PRIVATE_KEY}
    for reference in configuration.files():
        if reference.name not in made_at_start:
            _demand(configuration, reference, "file", configuration.directory / reference.name)
    for reference in configuration.written():
        _demand(configuration, reference, "directory", (configuration.directory / reference.name).parent)
    _read_files(configuration)
    daemon.account(configuration.process.user, configuration.process.group, path)
    for notice in configuration.notices:
        print(notice)
    print(f"{path}: good")
    return 0


def _demand(configuration: Configuration, reference: FileReference, kind: str, path: Path) -> None:
    """Raises ConfigurationError where nothing is at `path`."""
    if not _is_missing(path):
        return
    hint = "; wsgate user add makes it" if reference.option == "users" else ""
    raise ConfigurationError(
        f"there is no {kind} {path}{hint}",
        file=configuration.path,
        section=reference.section,
        option=reference.option,
        allowed="an existing file" if kind == "file" else "a file in a directory that exists",
    )


def _read_files(configuration: Configuration) -> None:
    """See what the files hold that the options name. Raises ConfigurationError."""
    from wsgate.named_files import read_all

    try:
        read_all(configuration, Files(configuration.directory))
    except ConfigurationError as error:
        raise ConfigurationError(
            error.problem, file=configuration.path, section=error.section, option=error.option, allowed=error.allowed
        ) from None


def _is_missing(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # it may well be there for the user who starts the daemon
    return False


def _user(options: argparse.Namespace) -> int:
    """One `wsgate user` command. Raises WsgateError."""
    from wsgate import userfile
    from wsgate.ini import load

    configuration = load(options.config)
    path, realm = str(configuration.directory / configuration.registrar.users), configuration.registrar.realm
    if options.action == "add" and options.user.endswith(f"@{realm}"):
        raise StartError(f"the name stands without the domain: {options.user.removesuffix('@' + realm)}")
    try:
        if options.action == "list":
            for user, of_realm, has_sha256 in userfile.list_users(path):
                print(f"{user}@{of_realm}" + ("" if has_sha256 else " (MD5 only)"))
        elif options.action == "del":
            userfile.delete_user(path, options.user, realm)
            print(f"{options.user}@{realm} is removed from {path}; a running wsgate learns it on reload (SIGHUP)")
        else:
            new = userfile.add_user(path, options.user, realm, _password(options))
            done = "added to" if new else "changed in"
            print(f"{options.user}@{realm} is {done} {path}; a running wsgate learns it on reload (SIGHUP)")
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    return 0


def _turn(words: Sequence[str]) -> int:
    """A `wsgate turn-...` command. Raises WsgateError."""
    from wsgate import turn_commands

    command = turn_commands.test if words[0] == "turn-test" else turn_commands.credentials
    return command(words[1:])


def _password(options: argparse.Namespace) -> str:
    """The new password, never from the command line. Raises StartError."""
    if options.password_stdin:
        line = sys.stdin.readline(MAX_PASSWORD_CHARACTERS + 2)
        password = line.rstrip("\r\n")
    elif not sys.stdin.isatty():
        raise StartError("no terminal to ask for the password: --password-stdin takes it from a pipe or file")
    else:
        password = getpass.getpass(f"Password of {options.user}: ")
        if password != getpass.getpass("Again: "):
            raise StartError("the two passwords differ")
    if not 0 < len(password) <= MAX_PASSWORD_CHARACTERS:
        raise StartError(f"the password must have 1 to {MAX_PASSWORD_CHARACTERS} characters")
    return password
