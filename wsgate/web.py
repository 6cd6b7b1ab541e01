"""The web application (WSGI): the web phone at /, its settings, /healthz, /status and /metrics.

It runs on the same server as the WebSocket upgrade; `environ['wsgate.remote']` is the Address of the real client.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from wsgate import meanings
from wsgate.addr import in_networks, split_host_port
from wsgate.config import Configuration
from wsgate.metrics import Counters
from wsgate.ws.handshake import Refusal, origin_allowed, values

StartResponse = Callable[[str, list[tuple[str, str]]], object]
Environ = Mapping[str, Any]
Headers = list[tuple[str, str]]
RtcConfiguration = Callable[[tuple[tuple[str, str], ...], str, str], "dict[str, object] | Refusal"]
"""What /turn answers to these header fields, this query and this host asked for (rule A5)."""

PHONE_DIRECTORY = Path(__file__).parent / "phone"
"""Where the files of the web phone lie in the package."""

PHONE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What is served of that directory, by the end of the name."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self' ws: wss: http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Scripts and styles come from the page's own files alone; a person may enter another server to connect to."""

PHONE_HEADERS = (
    ("Cache-Control", "no-cache"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
)

NOT_STORED = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
"""For what is true only now."""

TEXT_TYPE = "text/plain; charset=utf-8"
JSON_TYPE = "application/json"


class PhoneFile(NamedTuple):
    """One file of the web phone, in memory: its media type, its bytes and their ETag."""

    media_type: str
    data: bytes
    etag: str


@functools.cache
def phone_files(directory: Path = PHONE_DIRECTORY) -> Mapping[str, PhoneFile]:
    """The files of the web phone by name, read once: a worker reads them before it gives its rights away.

    Raises OSError.
    """
    files: dict[str, PhoneFile] = {}
    for path in sorted(directory.iterdir()):
        if path.suffix in PHONE_TYPES and path.is_file():
            data = path.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            files[path.name] = PhoneFile(PHONE_TYPES[path.suffix], data, etag)
    return files


class Response(NamedTuple):
    """What goes back: status line, media type, body, further headers."""

    status: str
    media_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = NOT_STORED


class WebApplication:
    """The WSGI application. `configuration` may be replaced at any time (reload).

    `status` gives the numbers of /status, nested dictionaries of JSON values; `turn_uris` says where a browser that
    asked for this host reaches the TURN server, and `rtc_configuration` what /turn answers.
    """

    def __init__(
        self,
        configuration: Configuration,
        phone: Mapping[str, PhoneFile],
        status: Callable[[], Mapping[str, Any]],
        counters: Counters,
        turn_uris: Callable[[str], tuple[str, ...]],
        rtc_configuration: RtcConfiguration | None = None,
    ) -> None:
        self.configuration = configuration
        self._phone = phone
        self._status = status
        self._counters = counters
        self._turn_uris = turn_uris
        self._rtc_configuration = rtc_configuration
        self._registry = CollectorRegistry()
        self._registry.register(_Metrics(status, counters))

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """One request; never blocks and holds nothing back."""
        method = environ["REQUEST_METHOD"]
        if method in ("GET", "HEAD"):
            response = self._respond(environ)
        else:
            response = self._preflight(environ) if method == "OPTIONS" else _METHOD_NOT_ALLOWED
        self._counters.count(f"http_responses_{response.status[:3]}")
        headers: Headers = [*response.headers]
        if not response.status.startswith("304"):
            headers += [("Content-Type", response.media_type), ("Content-Length", str(len(response.body)))]
        start_response(response.status, headers)
        return [] if method == "HEAD" else [response.body]

    def owns(self, path: str) -> bool:
        """True for a path that is answered here where a web server behind has all others (`http_fallback`).

        The page, whose place is /, is among them with `phone = on` alone.
        """
        configuration, settings = self.configuration, self.configuration.web
        return (
            (path == "/healthz" and settings.health)
            or (path in ("/status", "/metrics") and bool(settings.metrics_from))
            or (path == "/turn" and configuration.turn is not None)
            or (settings.phone and (path in ("/", "/phone.json") or path[1:] in self._phone))
        )

    def _respond(self, environ: Environ) -> Response:
        path = environ.get("PATH_INFO", "")
        settings = self.configuration.web
        if path == "/healthz" and settings.health:
            return Response("200 OK", TEXT_TYPE, b"ok\n")
        if path in ("/status", "/metrics"):
            if not in_networks(environ["wsgate.remote"].host, settings.metrics_from):
                return Response("403 Forbidden", TEXT_TYPE, b"Not from your address ([web] metrics_from).\n")
            return self._status_page() if path == "/status" else self._metrics_page()
        if path == "/turn" and self._rtc_configuration is not None:
            return self._turn_page(environ, self._rtc_configuration)
        if settings.phone and path.startswith("/"):
            return self._phone_page(path[1:] or "index.html", environ)
        return _NOT_FOUND

    def _status_page(self) -> Response:
        body = json.dumps(self._status(), indent=2, ensure_ascii=True).encode() + b"\n"
        return Response("200 OK", JSON_TYPE, body)

    def _preflight(self, environ: Environ) -> Response:
        """What a browser asks before another site's page may show its bearer token to /turn (Fetch, CORS-preflight)."""
        asked = values(environ.get("wsgate.fields", ()), "access-control-request-method")
        if not asked or environ.get("PATH_INFO") != "/turn" or self._rtc_configuration is None:
            return _METHOD_NOT_ALLOWED
        shared = self._shared_with(environ)
        if not shared:
            return _FOREIGN_ORIGIN
        allowed = (("Access-Control-Allow-Methods", "GET"), ("Access-Control-Allow-Headers", "Authorization"))
        return Response("200 OK", TEXT_TYPE, b"", (*NOT_STORED, ("Vary", "Origin"), *shared, *allowed))

    def _shared_with(self, environ: Environ) -> Headers:
        """What lets the page that asks read the answer, where `origins` names its site; never a wildcard (rule A5)."""
        fields, allowed = environ["wsgate.fields"], self.configuration.websocket.origins
        origins = values(fields, "origin")
        if not origins or "*" in allowed or not origin_allowed(origins, environ["wsgate.host"], allowed):
            return []
        return [("Access-Control-Allow-Origin", origins[0]), ("Access-Control-Allow-Credentials", "true")]

    def _turn_page(self, environ: Environ, rtc_configuration: RtcConfiguration) -> Response:
        """TURN credentials as RTCConfiguration, for a session cookie or bearer token (rule A5).

        Another site's page may read it where `origins` names that site; never a wildcard.
        """
        fields = environ["wsgate.fields"]
        origins, host = values(fields, "origin"), environ["wsgate.host"]
        if not origin_allowed(origins, host, self.configuration.websocket.origins):
            return _FOREIGN_ORIGIN
        answer = rtc_configuration(fields, environ.get("QUERY_STRING", ""), _host_of(host))
        headers: tuple[tuple[str, str], ...] = (*NOT_STORED, ("Vary", "Origin, Cookie, Authorization"))
        headers += tuple(self._shared_with(environ))
        if isinstance(answer, Refusal):
            return Response(answer.status, TEXT_TYPE, f"{answer.reason}\n".encode(), (*headers, *answer.fields))
        return Response("200 OK", JSON_TYPE, json.dumps(answer).encode() + b"\n", headers)

    def _metrics_page(self) -> Response:
        return Response("200 OK", CONTENT_TYPE_LATEST, generate_latest(self._registry))

    def _phone_page(self, name: str, environ: Environ) -> Response:
        if name == "phone.json":
            body = json.dumps(self._phone_settings(environ)).encode() + b"\n"
            return Response("200 OK", JSON_TYPE, body)
        file = self._phone.get(name)
        if file is None:
            return _NOT_FOUND
        headers = (("ETag", file.etag), *PHONE_HEADERS)
        if file.etag in environ.get("HTTP_IF_NONE_MATCH", ""):
            return Response("304 Not Modified", "", b"", headers)
        return Response("200 OK", file.media_type, file.data, headers)

    def _phone_settings(self, environ: Environ) -> dict[str, Any]:
        """What the page must know of this gateway (wsgate/phone/README.md)."""
        configuration = self.configuration
        domains = [domain for domain in configuration.embedded_domains if domain != "*"]
        return {
            "domain": domains[0] if domains else "",
            "path": configuration.websocket.path,
            "turn": self._phone_turn(environ.get("HTTP_HOST", "")),
        }

    def _phone_turn(self, host_asked_for: str) -> dict[str, Any] | None:
        configuration, turn = self.configuration, self.configuration.turn
        if turn is None:
            return None
        urls = list(self._turn_uris(_host_of(host_asked_for)))
        registrar = configuration.registrar
        same = bool(turn.users) and (turn.users, turn.realm) == (registrar.users, registrar.realm)
        return {"urls": urls, "same_credentials": same and bool(configuration.embedded_domains)} if urls else None


def _host_of(asked_for: str) -> str:
    """The host in a Host field, without the port; empty where there is none to read."""
    try:
        return split_host_port(asked_for, 0).host
    except ValueError:
        return ""


class _Metrics(Collector):
    """The counters and every number of the status as Prometheus metrics."""

    def __init__(self, status: Callable[[], Mapping[str, Any]], counters: Counters) -> None:
        self._status = status
        self._counters = counters

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        counted = {**dict.fromkeys(meanings.COUNTERS, 0), **self._counters.values}
        for name, count in sorted(counted.items()):
            yield CounterMetricFamily(f"wsgate_{name}", meanings.meaning(name), value=count)
        status = self._status()
        for name, value in _numbers("", status):
            if name not in counted:
                yield GaugeMetricFamily(f"wsgate_{name}", meanings.meaning(name), value=value)
        yield from _backends(status.get("backends", {}))


def _backends(status: Mapping[str, Mapping[str, Any]]) -> Iterator[GaugeMetricFamily]:
    """How many servers each backend has, and how many of them are dead."""
    targets = GaugeMetricFamily("wsgate_backend_targets", meanings.BACKEND_TARGETS, labels=["backend"])
    dead = GaugeMetricFamily("wsgate_backend_dead", meanings.BACKEND_DEAD, labels=["backend"])
    for domain, backend in status.items():
        if "addresses" in backend:
            targets.add_metric([domain], len(backend["addresses"]))
            dead.add_metric([domain], len(backend["dead"]))
    yield targets
    yield dead


def _numbers(prefix: str, status: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of nested dictionaries; a list counts by its length; counters and backends are left out."""
    for key, value in status.items():
        name = f"{prefix}_{key}" if prefix else key
        if isinstance(value, bool) or key in ("counters", "backends"):
            continue
        if isinstance(value, (int, float)):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield name, len(value)
        elif isinstance(value, Mapping) and all(part.isidentifier() for part in map(str, value)):
            yield from _numbers(name, value)


_NOT_FOUND = Response("404 Not Found", TEXT_TYPE, b"There is nothing here.\n")
_FOREIGN_ORIGIN = Response("403 Forbidden", TEXT_TYPE, b"this origin is not allowed\n")
_METHOD_NOT_ALLOWED = Response(
    "405 Method Not Allowed", TEXT_TYPE, b"Only GET and HEAD are served here.\n", (("Allow", "GET, HEAD"), *NOT_STORED)
)
