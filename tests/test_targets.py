"""The target of a backend as the ini file names it."""

from __future__ import annotations

import pytest

from wsgate.addr import Transport
from wsgate.sip.targets import REQUEST_PATH, TARGET, TargetUri, parse_target

UDP, TCP, TLS, WS, WSS = Transport


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("sip:example.com", TargetUri(False, "example.com", None, None)),
        ("SIP:PBX.Example.com.:5070", TargetUri(False, "pbx.example.com", 5070, None)),
        ("sip:10.0.0.1;transport=TCP", TargetUri(False, "10.0.0.1", None, TCP)),
        ("sip:[2001:DB8::1]:5060", TargetUri(False, "2001:db8::1", 5060, None)),
        ("sips:a.example;transport=tcp", TargetUri(True, "a.example", None, TLS)),
        ("sips:a.example;transport=ws", TargetUri(True, "a.example", None, WSS)),
        ("sip:a.example;transport=tls", TargetUri(False, "a.example", None, TLS)),
        ("sip:pbx", TargetUri(False, "pbx", None, None)),
    ],
)
def test_parse_target(text: str, uri: TargetUri) -> None:
    assert parse_target(text) == uri
    assert TARGET[0](text) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("example.com", "begin with sip"),
        ("http://example.com", "begin with sip"),
        ("sip:bob@example.com", "leave out the user"),
        ("sip:example.com?x=y", "headers"),
        ("sip:example.com:0", "port 0"),
        ("sip:example.com:70000", "port"),
        ("sip:", "host:port"),
        ("sip:exa mple.com", "host:port"),
        ("sip:-x.com", "neither a host name"),
        ("sip:a..b", "neither a host name"),
        ("sip:a.com;maddr=10.0.0.1", "maddr"),
        ("sip:a.com;transport=sctp", "sctp"),
        ("sips:a.com;transport=udp", "UDP"),
        ("sip:[2001:db8::1", "host:port"),
    ],
)
def test_a_bad_target_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TARGET[0](text)


def test_the_words_of_the_options() -> None:
    assert TARGET[0]("embedded") == "embedded"
    assert REQUEST_PATH[0]("/ws?x=1") == "/ws?x=1"
    for text in ("ws", "", "/a b", "/a\r\nHost: x"):
        with pytest.raises(ValueError, match="path"):
            REQUEST_PATH[0](text)
