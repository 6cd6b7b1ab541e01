"""The commands `wsgate turn-credentials` and `wsgate turn-test`: their options, and where passwords come from."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from collections.abc import Sequence

from wsgate import turn_credentials, turn_trial
from wsgate.config import Configuration
from wsgate.errors import StartError
from wsgate.ini import load
from wsgate.turn.auth import HandedOut
from wsgate.turn.uri import TurnUri, parse_uri
from wsgate.turn.values import Family
from wsgate.turn_link import Trust

PASSWORD_VARIABLE = "WSGATE_TURN_PASSWORD"
MAX_PASSWORD_CHARACTERS = 1024
TTL_SECONDS_MAX = 2592000
TEST_TTL_SECONDS = 600
TEST_USER = "turn-test"

_EPILOG = f"""\
exit status: 0 it works; 1 an option or file cannot be used; 2 wrong usage; 3 no connection or no answer; 4 the
certificate is not good; 5 credentials are refused; 6 no allocation; 7 the peer is refused (403); 8 data is lost.
The password comes from --password-file, the variable {PASSWORD_VARIABLE}, or is asked for; never from the command
line, which others can read. With -c it is made from the shared secret of that ini file."""


def credentials(words: Sequence[str]) -> int:
    """`wsgate turn-credentials`. Raises WsgateError."""
    parser = argparse.ArgumentParser(
        prog="wsgate turn-credentials",
        description="Print time-limited TURN credentials, made with the newest shared secret of [turn], and the"
        " RTCConfiguration that a page gives to RTCPeerConnection.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", required=True, help="the ini file")
    parser.add_argument("--user", metavar="NAME", required=True, help="stands in the user name, for quotas and logs")
    parser.add_argument("--ttl", metavar="SECONDS", type=_ttl, help="how long they are good; default: credential_ttl")
    parser.add_argument("--host", help="the host in the URIs; default: [sip] public, else an address of this machine")
    parser.add_argument("--json", action="store_true", help="print the RTCConfiguration alone")
    options = parser.parse_args(words)
    configuration = load(options.config)
    made = _made(configuration, options.user, options.ttl)
    host = options.host or turn_credentials.own_host(configuration)
    if not options.json:
        print(f"username: {made.username}\npassword: {made.password}\nttl: {made.ttl}")
    print(turn_credentials.rtc_configuration(turn_credentials.uris(configuration, host), made))
    return 0


def test(words: Sequence[str]) -> int:
    """`wsgate turn-test`. Raises WsgateError."""
    parser = argparse.ArgumentParser(
        prog="wsgate turn-test",
        description="Ask a STUN server for a Binding, or relay through a TURN server (any) to itself and back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "url",
        metavar="URL",
        type=_uri,
        help="stun:HOST, turn:HOST[:PORT][?transport=udp|tcp], or turns: for TLS (with transport=udp for DTLS)",
    )
    parser.add_argument("--user", metavar="NAME", default="", help="the user; with -c the name to make credentials for")
    parser.add_argument("--password-file", metavar="FILE", help="the password is its first line")
    parser.add_argument("-c", "--config", metavar="FILE", help="make credentials with the secret of this ini file")
    parser.add_argument("--ipv6", action="store_true", help="ask for relayed addresses of IPv6")
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=10.0, help="for each answer; default 10")
    parser.add_argument(
        "--ca-file", metavar="FILE", default="", help="trust these certificates instead of the system's"
    )
    parser.add_argument("--insecure", action="store_true", help="take any certificate")
    options = parser.parse_args(words)
    username, password = _login(options)
    trust = Trust(options.ca_file, options.insecure)
    if options.ca_file and not os.path.isfile(options.ca_file):
        raise StartError(f"--ca-file: there is no file {options.ca_file}")
    target = turn_trial.Target(options.url, trust, options.timeout, Family.IPV6 if options.ipv6 else None)
    return int(turn_trial.run(target, username, password, lambda line: print(line, flush=True)))


def _login(options: argparse.Namespace) -> tuple[str, str]:
    """User name and password; both empty where the server is to be asked without. Raises WsgateError."""
    if not options.url.relays:
        return "", ""
    if options.config:
        made = _made(load(options.config), options.user or TEST_USER, TEST_TTL_SECONDS)
        return made.username, made.password
    if not options.user:
        return "", ""
    if options.password_file:
        try:
            with open(options.password_file, encoding="utf-8") as file:
                password = file.readline(MAX_PASSWORD_CHARACTERS + 2).rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            words = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise StartError(f"--password-file: cannot read {options.password_file}: {words}") from None
    elif PASSWORD_VARIABLE in os.environ:
        password = os.environ[PASSWORD_VARIABLE]
    elif sys.stdin.isatty():
        password = getpass.getpass(f"Password of {options.user}: ")
    else:
        raise StartError(f"no password: --password-file FILE, or the variable {PASSWORD_VARIABLE}")
    if not 0 < len(password) <= MAX_PASSWORD_CHARACTERS:
        raise StartError(f"the password must have 1 to {MAX_PASSWORD_CHARACTERS} characters")
    return options.user, password


def _made(configuration: Configuration, user: str, ttl: int | None) -> HandedOut:
    if ttl is None:
        ttl = configuration.turn.credential_ttl if configuration.turn is not None else TEST_TTL_SECONDS
    return turn_credentials.make(configuration, user, ttl, time.time())


def _uri(text: str) -> TurnUri:
    try:
        return parse_uri(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _ttl(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= TTL_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"a whole number of seconds from 1 to {TTL_SECONDS_MAX}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 600:
        raise argparse.ArgumentTypeError("seconds from 0.1 to 600")
    return value
