"""Reading the ini file: one section to one settings dataclass, every value through the parser of its option.

Every error is a ConfigurationError that names file, section, option and what is allowed; unknown sections and options
are errors too, with the nearest known name.
"""

from __future__ import annotations

import configparser
import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from wsgate import cross_checks
from wsgate.addr import canonical_host, is_host
from wsgate.config import (
    SELF_SIGNED_CERTIFICATE,
    SELF_SIGNED_PRIVATE_KEY,
    Configuration,
    ProcessSettings,
    TraceSettings,
    WebSettings,
)
from wsgate.errors import ConfigurationError
from wsgate.guard import LimitSettings
from wsgate.identity import IdentitySettings
from wsgate.net.listener import ListenerSettings
from wsgate.net.resolver import ResolverSettings
from wsgate.settings import Switch
from wsgate.sip.registrar import RegistrarSettings
from wsgate.sip.settings import SipSettings
from wsgate.sip.targets import BackendSettings
from wsgate.turn.settings import PeerPolicy, RelayEngine, TurnSettings
from wsgate.ws.connection import WebSocketSettings

T = TypeVar("T")

MAX_INI_BYTES = 4 * 1024 * 1024
"""An ini file beyond this is refused: somebody named the wrong file."""


class Section(NamedTuple):
    """A kind of section: the field of Configuration, its dataclass, and whether it carries a name."""

    field: str
    settings: Any
    named: str = ""


SECTIONS = {
    "wsgate": Section("process", ProcessSettings),
    "listener": Section("listeners", ListenerSettings, "NAME"),
    "websocket": Section("websocket", WebSocketSettings),
    "sip": Section("sip", SipSettings),
    "backend": Section("backends", BackendSettings, "DOMAIN"),
    "registrar": Section("registrar", RegistrarSettings),
    "dns": Section("dns", ResolverSettings),
    "turn": Section("turn", TurnSettings),
    "limits": Section("limits", LimitSettings),
    "identity": Section("identity", IdentitySettings),
    "web": Section("web", WebSettings),
    "trace": Section("trace", TraceSettings),
}


def load(path: str | Path, source: str | Path | None = None) -> Configuration:
    """The configuration in the file `path`, read from `source` where that is another (a memory file with its bytes).

    Raises ConfigurationError.
    """
    return parse(_read(str(path), Path(source or path)), str(path))


def parse(text: str, path: str) -> Configuration:
    """The configuration in `text`, whose errors name the file `path`. Raises ConfigurationError."""
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",), default_section="\n")
    try:
        parser.read_string(text, source=path)
    except configparser.Error as error:
        raise _syntax_error(error, path) from None
    fields: dict[str, Any] = {field: ({} if section.named else section.settings()) for _, field, section in _kinds()}
    fields["turn"] = None
    notices: list[str] = []
    for title in parser.sections():
        section, name = _section(title, path)
        values = dict(parser.items(title))
        settings = _settings(section.settings, title, values, path)
        notices += _later(title, settings, path)
        if not section.named:
            fields[section.field] = settings
        elif name in fields[section.field]:
            raise ConfigurationError(f"the section stands twice for {name}", file=path, section=title)
        else:
            fields[section.field][name] = settings
    configuration = Configuration(path=path, directory=Path(path).absolute().parent, **fields)
    cross_checks.check(configuration)
    return _completed(configuration, notices)


def _kinds() -> Iterator[tuple[str, str, Section]]:
    return ((kind, section.field, section) for kind, section in SECTIONS.items())


def _read(path: str, source: Path) -> str:
    try:
        with source.open("rb") as file:
            data = file.read(MAX_INI_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", file=path) from None
    if len(data) > MAX_INI_BYTES:
        raise ConfigurationError("is too large for an ini file", file=path, allowed=f"up to {MAX_INI_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"line {line} is not text in UTF-8", file=path, allowed="UTF-8") from None


def _syntax_error(error: configparser.Error, path: str) -> ConfigurationError:
    if isinstance(error, configparser.DuplicateSectionError):
        return ConfigurationError(f"the section stands twice (line {error.lineno})", file=path, section=error.section)
    if isinstance(error, configparser.DuplicateOptionError):
        problem = f"the option stands twice (line {error.lineno})"
        return ConfigurationError(problem, file=path, section=error.section, option=error.option)
    if isinstance(error, configparser.MissingSectionHeaderError):
        return ConfigurationError(f"line {error.lineno} stands before the first [section]", file=path)
    if isinstance(error, configparser.ParsingError):
        line = error.errors[0][0]
        return ConfigurationError(f"line {line} cannot be understood", file=path, allowed="[section], option = value")
    return ConfigurationError(error.message, file=path)


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _section(title: str, path: str) -> tuple[Section, str]:
    """The kind of section that `title` names, and the name it carries (a domain in its one spelling)."""
    kind, _, name = title.partition(" ")
    name = name.strip()
    section = SECTIONS.get(kind)
    forms = [f"[{known} {entry.named}]" if entry.named else f"[{known}]" for known, entry in SECTIONS.items()]
    if section is None:
        near = difflib.get_close_matches(kind, list(SECTIONS), n=1, cutoff=0.5)
        hint = f"; did you mean {forms[list(SECTIONS).index(near[0])]}?" if near else ""
        raise ConfigurationError(f"unknown section{hint}", file=path, section=title, allowed=", ".join(forms))
    if section.named and not name:
        allowed = f"[{kind} {section.named}]"
        raise ConfigurationError("the section needs a name", file=path, section=title, allowed=allowed)
    if name and not section.named:
        raise ConfigurationError("the section takes no name", file=path, section=title, allowed=f"[{kind}]")
    if kind == "backend" and name != "*" and not is_host(name):
        problem = f"{name!r} is no SIP domain"
        raise ConfigurationError(problem, file=path, section=title, allowed="the host of SIP addresses, or *")
    return section, canonical_host(name) if kind == "backend" else name


def _settings(kind: type[T], title: str, values: Mapping[str, str], path: str) -> T:
    """One section as its dataclass; every value goes through the parser of its field."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    parsed: dict[str, Any] = {}
    for name, text in values.items():
        field = fields.get(name)
        if field is None:
            problem = f"unknown option{_nearest(name, list(fields))}"
            raise ConfigurationError(problem, file=path, section=title, option=name, allowed=", ".join(fields))
        try:
            parsed[name] = field.metadata["parse"](text)
        except ValueError as error:
            problem = str(error) if repr(text) in str(error) else f"{text!r} cannot be used: {error}"
            problem += '; a comment begins with ";" after a space' if "#" in text else ""
            allowed = field.metadata["allowed"]
            raise ConfigurationError(problem, file=path, section=title, option=name, allowed=allowed) from None
    return kind(**parsed)


def _later(title: str, settings: object, path: str) -> list[str]:
    """One line for each option that is set and whose feature this version does not have."""
    return [
        f"{path} [{title}] {field.name}: no effect: this version does not have {field.metadata['later']} yet"
        for field in dataclasses.fields(settings)  # type: ignore[arg-type]
        if field.metadata["later"] and getattr(settings, field.name) != field.default
    ]


def _completed(configuration: Configuration, notices: list[str]) -> Configuration:
    """Certificates filled in where a listener names none, TURN that is off left out, notices put in."""
    listeners = {name: _with_certificate(settings) for name, settings in configuration.listeners.items()}
    turn = configuration.turn if configuration.turn is not None and configuration.turn.enabled else None
    if turn is not None:
        turn = _turn_with_certificate(turn, listeners.get(configuration.tls_listener))
    self_signed = any(
        settings.tls is not Switch.OFF and not settings.certificate for settings in configuration.listeners.values()
    ) or (turn is not None and turn.certificate == SELF_SIGNED_CERTIFICATE)
    completed = dataclasses.replace(configuration, listeners=listeners, turn=turn, self_signed=self_signed)
    told = (f"{configuration.path}{text}" for text in (*_turn_notices(completed), *_notices(completed)))
    return dataclasses.replace(completed, notices=(*notices, *told))


def _turn_notices(configuration: Configuration) -> Iterator[str]:
    """What an administrator of TURN may not expect."""
    turn = configuration.turn
    if turn is None:
        return
    if not turn.credentials_with_register:
        if not any((turn.users, turn.shared_secret, turn.shared_secret_file, turn.oauth_keys)):
            yield (
                " [turn]: no users, no shared secret, no oauth_keys, no credentials_with_register:"
                " nobody can relay, STUN alone is served"
            )
        if turn.peer_policy is PeerPolicy.CALL:
            yield (
                " [turn] peer_policy: without credentials_with_register no call is known to allow"
                " anything: clients of this server reach each other alone"
            )
    if turn.mobility and configuration.process.workers > 1:
        yield (
            " [turn] mobility: an allocation stays with its worker: a client whose new address"
            " comes to another one is refused and has to allocate anew"
        )
    if turn.relay_engine is RelayEngine.COMPILED:
        yield " [turn] relay_engine: this version has no compiled engine; the pure one relays"


def _notices(configuration: Configuration) -> Iterator[str]:
    """What an administrator may not expect of the rest."""
    for name, listener in configuration.listeners.items():
        if listener.http_fallback is not None and configuration.web.phone:
            yield (
                f" [listener {name}] http_fallback: the web phone stands at /, not the page of that"
                " server, while [web] phone is on"
            )
    if not configuration.backends:
        yield ": no [backend DOMAIN]: no SIP domain is served"


def _with_certificate(settings: ListenerSettings) -> ListenerSettings:
    if settings.tls is Switch.OFF:
        return settings
    if not settings.certificate:
        return dataclasses.replace(settings, certificate=SELF_SIGNED_CERTIFICATE, private_key=SELF_SIGNED_PRIVATE_KEY)
    return dataclasses.replace(settings, private_key=settings.private_key or settings.certificate)


def _turn_with_certificate(turn: TurnSettings, listener: ListenerSettings | None) -> TurnSettings:
    """The certificate of TURN over TLS and DTLS: its own, else that of the first listener with TLS (rule E1)."""
    if turn.certificate:
        return dataclasses.replace(turn, private_key=turn.private_key or turn.certificate)
    if listener is not None:
        return dataclasses.replace(turn, certificate=listener.certificate, private_key=listener.private_key)
    if turn.tls:
        return dataclasses.replace(turn, certificate=SELF_SIGNED_CERTIFICATE, private_key=SELF_SIGNED_PRIVATE_KEY)
    return turn
