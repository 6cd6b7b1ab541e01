"""Browsers reach the gateway through Apache with the shipped include: wss at Apache, ws behind it, in both ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.interop.apache import Apache
from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.process import wait_for
from tests.interop.raw import HandshakeRefused, RawWebSocket
from tests.interop.softphone import Softphone, header, headers

LISTENER = """
trusted_proxies = 127.0.0.1
tls_at_relay = on
"""
BROWSER = "127.0.0.2"
"""The address that browsers come from; Apache and the gateway are 127.0.0.1."""

PER_ADDRESS = 4
"""How many connections the gateway under test takes from one address."""


class Site(NamedTuple):
    """A web site whose Apache relays to a gateway in front of a Kamailio."""

    apache: Apache
    gateway: Daemon
    kamailio: Kamailio

    def phone(self, user: str, source: str = BROWSER) -> Softphone:
        """A JsSIP whose page came from this site."""
        options = {
            "cert_file": str(self.apache.certificate),
            "localAddress": source,
            "origin": f"https://127.0.0.1:{self.apache.port}",
        }
        return Softphone(self.apache.url, user, PASSWORD, socket=options)

    def connect(self, source: str = BROWSER, **extra: str) -> RawWebSocket:
        """A WebSocket by hand; `extra` are headers with _ for -."""
        given = tuple((name.replace("_", "-"), value) for name, value in extra.items())
        address = ("127.0.0.1", self.apache.port)
        return RawWebSocket(address, tls=self.apache.tls, source=source, headers=given)

    def remotes(self) -> list[str]:
        """The addresses, without port, that /status shows for the connected browsers."""
        return sorted(flow["remote"].rpartition(":")[0] for flow in self.gateway.status()["flows"])


@pytest.fixture(scope="module", params=["upgrade=websocket", "mod_proxy_wstunnel"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that relays in one of the two ways."""
    directory = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        kamailio = Kamailio(directory / "kamailio")
        stack.callback(kamailio.stop)
        text = f"""
            [backend example.test]
            target = sip:127.0.0.1:{kamailio.port}
            [limits]
            connections_per_address = {PER_ADDRESS}
            """
        gateway = Daemon(directory / "wsgate", text, listener=LISTENER)
        stack.callback(gateway.stop)
        apache = Apache(directory / "apache", f"127.0.0.1:{gateway.http}", wstunnel="wstunnel" in request.param)
        stack.callback(apache.stop)
        yield Site(apache, gateway, kamailio)


@pytest.fixture(autouse=True)
def _nobody_left(site: Site) -> Iterator[None]:
    """Each test begins and ends without connections."""
    yield
    wait_for(lambda: not site.gateway.status()["flows"], "the flows to be gone")


def test_two_browsers_register_and_call_through_apache(site: Site) -> None:
    with ExitStack() as stack:
        alice, bob = site.phone("alice"), site.phone("bob", "127.0.0.3")
        stack.callback(alice.close)
        stack.callback(bob.close)
        alice.wait("registered")
        bob.wait("registered")
        assert site.remotes() == [BROWSER, "127.0.0.3"]
        alice.do("call", target="sip:bob@example.test")
        bob.wait("session")
        invite = bob.messages("in", "INVITE")[0]
        # B3: the browser's side is wss, though the gateway's is ws.
        assert header(invite, "Via").startswith("SIP/2.0/WSS ")
        assert all(value.startswith("<sip:") for value in headers(invite, "Record-Route"))
        bob.do("answer")
        alice.wait("confirmed")
        bob.wait("confirmed")
        alice.do("hangup")
        bob.wait("ended")
        site.gateway.wait_status("dialogs", 0)
        bob.do("call", target="sip:alice@example.test")
        alice.wait("session")
        alice.do("answer")
        bob.wait("confirmed")
        alice.wait("confirmed")
        alice.do("hangup")
        bob.wait("ended")
        site.gateway.wait_status("dialogs", 0)


def test_status_shows_the_browser_whatever_it_says(site: Site) -> None:
    with ExitStack() as stack:
        stack.callback(site.connect(X_Forwarded_For="203.0.113.7").close)
        stack.callback(site.connect(X_Forwarded_For="127.0.0.1, 127.0.0.1").close)
        stack.callback(site.connect(X_Forwarded_For="unknown", Forwarded="for=203.0.113.7").close)
        assert site.remotes() == [BROWSER] * 3
        log = site.gateway.log
        assert "203.0.113.7" not in log


def test_forged_first_entry_changes_no_limit(site: Site) -> None:
    with ExitStack() as stack:
        for number in range(PER_ADDRESS):
            stack.callback(site.connect(X_Forwarded_For=f"203.0.113.{number}").close)
        with pytest.raises(HandshakeRefused) as refused:
            site.connect(X_Forwarded_For="203.0.113.99")
        assert refused.value.status == 503
        assert b"retry-after:" in refused.value.head.lower()
        # Another browser behind the same Apache has an account of its own.
        stack.callback(site.connect(source="127.0.0.4").close)
        assert site.remotes() == [BROWSER] * PER_ADDRESS + ["127.0.0.4"]


def test_origin_is_compared_with_the_host_asked_of_apache(site: Site) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        site.connect(Origin="https://evil.example")
    assert refused.value.status == 403
    with pytest.raises(HandshakeRefused) as refused:
        site.connect(Origin="https://evil.example", X_Forwarded_Host="evil.example")
    assert refused.value.status == 403
    site.connect(Origin=f"https://127.0.0.1:{site.apache.port}").close()
    assert site.apache.port != site.gateway.http


def test_straight_connection_believes_no_forwarded_header_from_elsewhere(site: Site) -> None:
    """The listener believes 127.0.0.1 alone; 127.0.0.5 is no relay."""
    direct = RawWebSocket(site.gateway.address, source="127.0.0.5", headers=(("X-Forwarded-For", "203.0.113.7"),))
    try:
        assert site.remotes() == ["127.0.0.5"]
    finally:
        direct.close()
