"""TLS contexts for streams: ours towards browsers, and as a client towards backends; 1.2 and later only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gevent import ssl

from wsgate.addr import canonical_host, is_numeric
from wsgate.errors import ProtocolError, StartError

ALPN_HTTP = "http/1.1"
ALPN_TURN = ("stun.turn", "stun.nat-discovery")
"""What clients of TURN and STUN ask for (RFC 7443 §4)."""


def server_context(
    certificate: str, private_key: str = "", alpn_protocols: tuple[str, ...] = (ALPN_HTTP,)
) -> ssl.SSLContext:
    """A server context from PEM files (`private_key` empty: in the same file). Raises StartError with one clear line.

    The paths may be /proc/self/fd/N of a memory file; they are read here and never again.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    _load(context, certificate, private_key)
    context.set_alpn_protocols(list(alpn_protocols))
    return context


def client_context(
    ca_file: str = "", certificate: str = "", private_key: str = "", *, checks_name: bool = True
) -> ssl.SSLContext:
    """A client context that verifies the chain; `ca_file` empty: what the system trusts. Raises StartError.

    With `checks_name` it verifies what goes to `wrap_socket(server_hostname=...)` as HTTPS does; that is for WSS
    (RFC 7118 §9.1). For SIP over TLS it is `check_sip_domain` that judges the name.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = checks_name
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise StartError(f"cannot read the CA file {ca_file}: {_reason(error)}") from None
    else:
        context.load_default_certs()
    if certificate:
        _load(context, certificate, private_key)
    return context


class ClientContexts:
    """The client contexts of the backends, one for each set of files. `path` turns an ini file's name into a path."""

    def __init__(self, path: Callable[[str], str] = str) -> None:
        self._path = path
        self._contexts: dict[tuple[str, str, str, bool], ssl.SSLContext] = {}

    def get(self, ca_file: str, certificate: str, private_key: str, *, checks_name: bool) -> ssl.SSLContext:
        """The context for these files, read when they are asked for the first time. Raises StartError."""
        key = (ca_file, certificate, private_key, checks_name)
        context = self._contexts.get(key)
        if context is None:
            paths = [self._path(name) if name else "" for name in (ca_file, certificate, private_key)]
            context = self._contexts[key] = client_context(*paths, checks_name=checks_name)
        return context


def check_sip_domain(certificate: Mapping[str, Any], domain: str) -> None:
    """See that a verified certificate (as `getpeercert` gives it) is that of the SIP `domain`. Raises ProtocolError.

    Its identities are the subject alternative names: `sip:` URIs without user, DNS names, and IP addresses for a
    numeric target. Compared whole and without case; a wildcard matches nothing (RFC 5922 §7.1, §7.2).
    """
    domain = canonical_host(domain)
    identities = [_sip_identity(kind, str(value)) for kind, value in certificate.get("subjectAltName", ())]
    wanted = "IP" if is_numeric(domain) else "DNS"
    if (wanted, domain) not in identities:
        named = ", ".join(name for _, name in identities if name)[:200]
        raise ProtocolError(f"certificate refused: it is for {named or 'nobody'}, not for {domain}")


def _sip_identity(kind: str, value: str) -> tuple[str, str]:
    if kind == "IP Address":
        return "IP", canonical_host(value.strip())
    if kind == "URI":
        scheme, _, rest = value.partition(":")
        host = rest.partition(";")[0].partition("?")[0]
        return ("DNS", canonical_host(host)) if scheme.lower() == "sip" and "@" not in rest else ("", "")
    return (kind, canonical_host(value)) if kind == "DNS" else ("", "")


class ServerContext:
    """The server context of a listener, exchanged in place: running connections keep theirs, new ones get the new."""

    def __init__(self, certificate: str, private_key: str = "", alpn_protocols: tuple[str, ...] = (ALPN_HTTP,)) -> None:
        """Raises StartError."""
        self._alpn_protocols = alpn_protocols
        self._context = server_context(certificate, private_key, alpn_protocols)

    def __call__(self) -> ssl.SSLContext:
        """The context for the next connection."""
        return self._context

    def prepare(self, certificate: str, private_key: str = "") -> Callable[[], None]:
        """Read the files again (SIGHUP); nothing has changed until what this returns is called. Raises StartError."""
        context = server_context(certificate, private_key, self._alpn_protocols)

        def take() -> None:
            self._context = context

        return take

    def reload(self, certificate: str, private_key: str = "") -> None:
        """Read the files again. Raises StartError and keeps the old context when they cannot be used."""
        self.prepare(certificate, private_key)()


def _load(context: ssl.SSLContext, certificate: str, private_key: str) -> None:
    try:
        # A key behind a passphrase would ask the terminal and stop the daemon; an empty one fails instead.
        context.load_cert_chain(certificate, private_key or None, password="")
    except OSError as error:
        files = " and ".join(dict.fromkeys((certificate, private_key or certificate)))
        hint = "" if private_key else "; private_key names a key that lies in a file of its own"
        raise StartError(f"cannot use the certificate and key in {files}: {_key_reason(error)}{hint}") from None


def _key_reason(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return _reason(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is that of another certificate"
    return "it takes a certificate and its key in PEM, without a passphrase"


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
