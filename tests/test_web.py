"""The web application: who may see what, with which headers."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from wsgate.addr import Address, uri_host
from wsgate.config import Configuration
from wsgate.ini import parse
from wsgate.metrics import Counters
from wsgate.web import PhoneFile, RtcConfiguration, WebApplication, phone_files
from wsgate.ws.handshake import Refusal

BASE = "[listener web]\nbind = 127.0.0.1:0\ntls = off\n"
PAGE = PhoneFile("text/html; charset=utf-8", b"<!doctype html>", '"etag"')


class Answer:
    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.code, self.headers, self.body = int(status[:3]), dict(headers), body


def turn_uris(host: str) -> tuple[str, ...]:
    return (f"turn:{uri_host(host)}:3478?transport=udp",)


def application(
    extra: str = "", turn_uris: Callable[[str], tuple[str, ...]] = turn_uris, rtc: RtcConfiguration | None = None
) -> WebApplication:
    configuration: Configuration = parse(BASE + extra, "/etc/wsgate.ini")
    counters = Counters()
    counters.count("sip_requests", 3)
    status = {"connections": 2, "backends": {"example.com": {"alive": 1}}, "memory": {"rss": 5}, "version": "x"}
    return WebApplication(configuration, {"index.html": PAGE}, lambda: status, counters, turn_uris, rtc)


def ask(app: WebApplication, path: str, method: str = "GET", remote: str = "127.0.0.1", **environ: Any) -> Answer:
    seen: list[Any] = []
    everything = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgate.remote": Address(remote, 1), **environ}
    body = b"".join(app(everything, lambda status, headers: seen.extend((status, headers))))
    return Answer(seen[0], seen[1], body)


def test_the_page_stands_at_the_root_with_its_policy():
    answer = ask(application(), "/")
    assert (answer.code, answer.body) == (200, PAGE.data)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_page_that_the_browser_has_is_not_sent_again():
    answer = ask(application(), "/", HTTP_IF_NONE_MATCH='"etag"')
    assert (answer.code, answer.body) == (304, b"")
    assert answer.headers["ETag"] == '"etag"'


def test_head_has_the_headers_and_no_body():
    answer = ask(application(), "/", method="HEAD")
    assert (answer.code, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(PAGE.data))


TURN = "[turn]\nudp = 127.0.0.1:0\n"


@pytest.mark.parametrize(
    ("extra", "ours"),
    [
        ("", {"/", "/index.html", "/phone.json", "/healthz", "/status", "/metrics"}),
        ("[web]\nphone = off\n", {"/healthz", "/status", "/metrics"}),
        ("[web]\nphone = off\nhealth = off\nmetrics_from =\n", set()),
        ("[web]\nphone = off\nhealth = off\nmetrics_from =\n" + TURN, {"/turn"}),
    ],
)
def test_which_paths_are_ours_where_a_web_server_has_the_others(extra: str, ours: set[str]):
    asked = {"/", "/index.html", "/phone.json", "/healthz", "/status", "/metrics", "/turn"}
    asked |= {"/site", "//", "/healthz/", "/Status", "/phone.js", "/%68ealthz", "/index.html/"}
    assert {path for path in asked if application(extra).owns(path)} == ours


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_405(method: str):
    answer = ask(application(), "/", method=method)
    assert answer.code == 405
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/x", "/../config.py", "/index.html/", "//", "", "/README.md", "/jssip.js"])
def test_what_is_not_there_is_404(path: str):
    assert ask(application(), path).code == 404


def test_without_the_phone_the_root_is_404():
    assert ask(application("[web]\nphone = off\n"), "/").code == 404


def test_health_is_for_everybody_unless_off():
    assert ask(application(), "/healthz", remote="203.0.113.9").body == b"ok\n"
    assert ask(application("[web]\nhealth = off\nphone = off\n"), "/healthz").code == 404


@pytest.mark.parametrize("path", ["/status", "/metrics"])
def test_numbers_are_for_metrics_from_alone(path: str):
    assert ask(application(), path, remote="203.0.113.9").code == 403
    assert ask(application("[web]\nmetrics_from = 203.0.113.0/24\n"), path, remote="203.0.113.9").code == 200
    assert ask(application("[web]\nmetrics_from =\n"), path).code == 403


def test_status_is_json_and_metrics_speak_of_the_same():
    app = application()
    status = ask(app, "/status")
    assert json.loads(status.body)["connections"] == 2
    metrics = ask(app, "/metrics").body.decode()
    assert "wsgate_connections 2.0" in metrics
    assert "wsgate_sip_requests_total 3.0" in metrics
    assert "wsgate_memory_rss 5.0" in metrics
    assert "# HELP wsgate_connections Connections of browsers" in metrics


def test_metrics_begin_at_zero_and_backends_are_told_apart():
    backends = {"a.test": {"addresses": ["UDP 192.0.2.1:5060", "UDP 192.0.2.2:5060"], "dead": ["UDP 192.0.2.2:5060"]}}
    configuration = application().configuration
    status = {"backends": {**backends, "localhost": {"target": "embedded"}}}
    app = WebApplication(configuration, {}, lambda: status, Counters(), lambda host: ())
    metrics = ask(app, "/metrics").body.decode()
    assert "wsgate_internal_errors_total 0.0" in metrics
    assert 'wsgate_backend_targets{backend="a.test"} 2.0' in metrics
    assert 'wsgate_backend_dead{backend="a.test"} 1.0' in metrics
    assert "localhost" not in metrics


def test_the_phone_learns_domain_path_and_turn():
    extra = (
        "[backend example.com]\ntarget = embedded\n[registrar]\nrealm = r\nusers = u\n[turn]\nrealm = r\nusers = u\n"
        "[websocket]\npath = /sip\n"
    )
    document = json.loads(ask(application(extra), "/phone.json", HTTP_HOST="gate.test:8443").body)
    turn = {"urls": ["turn:gate.test:3478?transport=udp"], "same_credentials": True}
    assert document == {"domain": "example.com", "path": "/sip", "turn": turn}


def test_the_phone_learns_that_there_is_no_turn():
    assert json.loads(ask(application(), "/phone.json", HTTP_HOST="gate.test").body)["turn"] is None


def test_turn_users_of_their_own_are_not_the_sip_users():
    extra = "[backend a.test]\ntarget = embedded\n[registrar]\nrealm = r\nusers = u\n[turn]\nrealm = other\nusers = u\n"
    document = json.loads(ask(application(extra), "/phone.json", HTTP_HOST="[2001:db8::1]:8443").body)
    assert document["turn"] == {"urls": ["turn:[2001:db8::1]:3478?transport=udp"], "same_credentials": False}


def test_no_uris_no_turn():
    document = json.loads(ask(application("[turn]\nusers = u\n", lambda _: ()), "/phone.json", HTTP_HOST="x").body)
    assert document["turn"] is None


RTC: dict[str, object] = {"iceServers": [{"urls": ["turn:x"], "username": "1:a", "credential": "p"}], "ttl": 60}
ORIGINS = "[websocket]\norigins = https://app.test, same\n"


def ask_turn(answer: dict[str, object] | Refusal, extra: str = ORIGINS, *fields: tuple[str, str]) -> Answer:
    asked: list[Any] = []

    def rtc(fields: Any, query: str, host: str) -> dict[str, object] | Refusal:
        asked.append((fields, query, host))
        return answer

    environ = {"wsgate.fields": fields, "wsgate.host": "gate.test:8443", "QUERY_STRING": "access_token=t"}
    found = ask(application(extra, rtc=rtc), "/turn", **environ)
    assert asked in ([], [(fields, "access_token=t", "gate.test")])
    return found


def test_turn_credentials_as_rtc_configuration():
    """Rule A5: not cached, and no wildcard for other sites."""
    answer = ask_turn(RTC)
    assert (answer.code, json.loads(answer.body)) == (200, RTC)
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "code"), [("https://app.test", 200), ("https://gate.test", 200), ("https://x.test", 403)]
)
def test_turn_credentials_are_for_the_pages_of_origins_alone(origin: str, code: int):
    """Rule A5."""
    answer = ask_turn(RTC, ORIGINS, ("Origin", origin))
    assert answer.code == code
    assert answer.headers.get("Access-Control-Allow-Origin") == (origin if code == 200 else None)
    assert b"username" not in answer.body or code == 200


def test_no_page_of_another_site_reads_turn_credentials_where_all_may_connect():
    answer = ask_turn(RTC, "[websocket]\norigins = *\n", ("Origin", "https://x.test"))
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    ("origins", "origin", "code"),
    [(ORIGINS, "https://app.test", 200), (ORIGINS, "https://x.test", 403), ("[websocket]\norigins = *\n", "null", 403)],
)
def test_a_page_of_another_site_may_show_its_token_where_origins_names_it(origins: str, origin: str, code: int):
    """Rule A5: a browser asks first, by OPTIONS, before it sends Authorization across sites."""
    fields = (("Origin", origin), ("Access-Control-Request-Method", "GET"))
    environ = {"wsgate.fields": fields, "wsgate.host": "gate.test:8443"}
    app = application(origins, rtc=lambda *_: RTC)
    answer = ask(app, "/turn", "OPTIONS", **environ)
    assert (answer.code, b"username" in answer.body) == (code, False)
    granted = {name: value for name, value in answer.headers.items() if name.startswith("Access-Control")}
    assert granted == (
        {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Credentials": "true",
            "Access-Control-Allow-Methods": "GET",
            "Access-Control-Allow-Headers": "Authorization",
        }
        if code == 200
        else {}
    )
    assert ask(app, "/", "OPTIONS", **environ).code == 405
    assert ask(application(origins), "/turn", "OPTIONS", **environ).code == 405
    assert ask(app, "/turn", "OPTIONS", **{**environ, "wsgate.fields": fields[:1]}).code == 405


def test_without_an_identity_no_turn_credentials():
    """Rule A5."""
    answer = ask_turn(Refusal("401 Unauthorized", "a bearer token is missing", (("WWW-Authenticate", "Bearer"),)))
    assert (answer.code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert ask(application(), "/turn").code == 404


def test_a_reload_shows_at_once():
    app = application()
    app.configuration = parse(BASE + "[web]\nphone = off\n", "x.ini")
    assert ask(app, "/").code == 404


def test_only_files_of_the_page_are_read(tmp_path):
    for name in ("index.html", "a.js", "README.md", ".secret", "note.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "below.js").mkdir()
    assert set(phone_files(tmp_path)) == {"index.html", "a.js"}
