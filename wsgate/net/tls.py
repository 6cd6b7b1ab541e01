"""TLS contexts for streams: ours towards browsers, and as a client towards backends; 1.2 and later only."""

from __future__ import annotations

from gevent import ssl

from wsgate.errors import StartError

ALPN_HTTP = "http/1.1"


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


def client_context(ca_file: str = "", certificate: str = "", private_key: str = "") -> ssl.SSLContext:
    """A client context that verifies chain and name; `ca_file` empty: what the system trusts. Raises StartError.

    The name to verify goes to `wrap_socket(server_hostname=...)`: `server_name` where configured, else the SIP domain.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
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


class ServerContext:
    """The server context of a listener, exchanged in place: running connections keep theirs, new ones get the new."""

    def __init__(self, certificate: str, private_key: str = "") -> None:
        """Raises StartError."""
        self._context = server_context(certificate, private_key)

    def __call__(self) -> ssl.SSLContext:
        """The context for the next connection."""
        return self._context

    def reload(self, certificate: str, private_key: str = "") -> None:
        """Read the files again (SIGHUP). Raises StartError and keeps the old context when they cannot be used."""
        self._context = server_context(certificate, private_key)


def _load(context: ssl.SSLContext, certificate: str, private_key: str) -> None:
    try:
        # A key behind a passphrase would ask the terminal and stop the daemon; an empty one fails instead.
        context.load_cert_chain(certificate, private_key or None, password="")
    except OSError as error:
        files = certificate if not private_key else f"{certificate} and {private_key}"
        raise StartError(f"cannot use the certificate and key in {files}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
