"""A desk phone behind a proxy that does not record-route: run by test_direct_targets.py in a network namespace.

`python -m tests.interop.direct_scenario DIRECTORY`, with 10.99.0.1, 10.99.0.10, 10.99.0.20 and 10.99.0.30 on lo.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.dns_server import DnsServer
from tests.interop.daemon import Daemon
from tests.interop.raw import UdpPeer, answer, header, headers, sip
from tests.interop.test_open_relay import SDP, Browser, Scene

GATEWAY, SERVER, DESK, ELSEWHERE = "10.99.0.1", "10.99.0.10", "10.99.0.20", "10.99.0.30"


class Call:
    """A call from a browser over the server to a desk phone whose Contact is `contact`."""

    def __init__(self, scene: Scene, browser: Browser, number: int, contact: str) -> None:
        self.call, self.contact = f"direct{number}", contact
        self.invite = browser.request("INVITE", "sip:desk@example.test", to="<sip:desk@example.test>", call=self.call)
        browser.ws.send(self.invite)
        received, source = scene.backend.receive_until(b"INVITE ")
        scene.backend.send(answer(received, "200 OK", f"Contact: <{contact}>", tag="desk", body=SDP), source)
        success = browser.ws.receive_until(lambda m: m.startswith(b"SIP/2.0 200") and b" INVITE\r\n" in m)
        recorded = [part.strip() for value in headers(success, "Record-Route") for part in value.split(",")]
        self.to = header(success, "To")
        self.routes = tuple(reversed(recorded))
        # As the desk phone has them: from the INVITE that it received.
        self.desk_routes = tuple(part.strip() for v in headers(received, "Record-Route") for part in v.split(","))

    def in_dialog(self, browser: Browser, method: str, cseq: int) -> bytes:
        """A request of the browser inside the call."""
        return browser.request(method, self.contact, routes=self.routes, to=self.to, call=self.call, cseq=cseq)

    def of_desk(self, browser: Browser, peer: UdpPeer, method: str, cseq: int, to_tag: str) -> bytes:
        """A request of the desk phone inside the call, straight to the gateway."""
        return sip(
            f"{method} {browser.contact} SIP/2.0",
            f"Via: SIP/2.0/UDP {peer.host}:{peer.port};branch=z9hG4bK{self.call}{method}{cseq}{peer.port};rport",
            "Max-Forwards: 70",
            *(f"Route: {route}" for route in self.desk_routes),
            f"From: {self.to}",
            f"To: <sip:{browser.user}@example.test>;tag={to_tag}",
            f"Call-ID: {self.call}",
            f"CSeq: {cseq} {method}",
            f"Contact: <sip:desk@{peer.host}:{peer.port}>",
        )


def both_ways(scene: Scene, browser: Browser, desk: UdpPeer, stranger: UdpPeer) -> None:
    """The browser's ACK and BYE reach the desk phone straight, its INFO and BYE reach the browser (D1 b, N6)."""
    gateway = (GATEWAY, scene.gateway.sip)
    call = Call(scene, browser, 1, f"sip:desk@{DESK}:{desk.port}")
    browser.ws.send(call.in_dialog(browser, "ACK", 1))
    desk.receive_until(b"ACK ")
    # A stranger who knows the call may speak in it as well as its party may, but may not make itself the target.
    stranger.send(call.of_desk(browser, stranger, "UPDATE", 3, browser.tag), gateway)
    received = browser.ws.receive_until(lambda m: m.startswith(b"UPDATE "))
    browser.ws.send(answer(received, "200 OK"))
    stranger.receive_until(b"SIP/2.0 200")
    stolen = f"sip:desk@{stranger.host}:{stranger.port}"
    request = browser.request("INFO", stolen, routes=call.routes, to=call.to, call=call.call, cseq=2)
    assert browser.ask(request) == 403
    # One who does not know the tags is nobody.
    stranger.send(call.of_desk(browser, stranger, "INFO", 4, "unknown"), gateway)
    assert stranger.receive_until(b"SIP/2.0 ")[0].startswith(b"SIP/2.0 403 ")
    browser.ws.send(call.in_dialog(browser, "BYE", 5))
    received, source = desk.receive_until(b"BYE ")
    assert source == gateway
    desk.send(answer(received, "200 OK"), source)
    browser.ws.receive_until(lambda m: m.startswith(b"SIP/2.0 200") and b" BYE\r\n" in m)
    call = Call(scene, browser, 2, f"sip:desk@{DESK}:{desk.port}")
    browser.ws.send(call.in_dialog(browser, "ACK", 1))
    desk.receive_until(b"ACK ")
    desk.send(call.of_desk(browser, desk, "BYE", 1, browser.tag), gateway)
    received = browser.ws.receive_until(lambda m: m.startswith(b"BYE "))
    browser.ws.send(answer(received, "200 OK"))
    desk.receive_until(b"SIP/2.0 200")


def only_what_is_named(scene: Scene, browser: Browser, victim: UdpPeer) -> None:
    """A Contact outside direct_targets, or of the right address with the wrong port, is refused (D1 b)."""
    wrong = UdpPeer(ELSEWHERE)
    for number, contact in enumerate((f"sip:x@{ELSEWHERE}:{wrong.port}", f"sip:x@{DESK}:{victim.port}"), 10):
        call = Call(scene, browser, number, contact)
        browser.ws.send(call.in_dialog(browser, "ACK", 1))
        assert browser.ask(call.in_dialog(browser, "INFO", 2)) == 403
    # Right address and port, but not what this call's far party gave.
    call = Call(scene, browser, 20, f"sip:x@{SERVER}:9")
    request = browser.request("INFO", f"sip:x@{DESK}:9", routes=call.routes, to=call.to, call=call.call, cseq=2)
    assert browser.ask(request) == 403
    assert victim.receive(0.3) is None
    assert wrong.receive(0.3) is None
    wrong.close()


def main(directory: Path) -> None:
    """Both parts, on one gateway."""
    server, desk, victim, stranger = UdpPeer(SERVER), UdpPeer(DESK), UdpPeer(DESK), UdpPeer(ELSEWHERE)
    zone = f'@ NAPTR 10 10 "s" "SIP+D2U" "" _sip._udp\n_sip._udp SRV 10 10 {server.port} pbx\npbx A {SERVER}\n'
    with DnsServer(zone, "example.test") as dns:
        text = f"""
            [backend example.test]
            target = sip:example.test
            transports = udp
            [dns]
            nameservers = 127.0.0.1:{dns.address[1]}
            """
        options = f"direct_targets = {DESK}/32:{desk.port}"
        gateway = Daemon(directory, text, sip_host=GATEWAY, sip_options=options)
        try:
            scene = Scene(gateway, server, dns, [])
            browser = Browser(scene, "alice")
            both_ways(scene, browser, desk, stranger)
            only_what_is_named(scene, browser, victim)
            browser.ws.close()
        finally:
            gateway.stop()
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
