"""JsSIP and SIP.js in Chromium through the gateway and a Kamailio, a sipp as desk phone or the other library far off.

Calls both ways, hold, re-INVITE, DTMF, MESSAGE, large bodies and transfer, each with both libraries: rules C1 to C6,
D2, I2 to I7, B3, B4, as browsers see them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.dns_server import DnsServer
from tests.interop.agents import LIBRARIES, Agent, Pages
from tests.interop.chromium import Chromium
from tests.interop.daemon import Daemon
from tests.interop.kamailio import PASSWORD, Kamailio
from tests.interop.scenario import Body, Notified, Pause, Receive, Request, answering, calling
from tests.interop.softphone import header
from tests.interop.test_kamailio import NUMBER, Company, backend, wait_no_dialogs, zone

UNUSUAL = "Grüße, κόσμε, 世界, 🙂 \"<&>\" 'quoted' %41"
FRAGMENT = "message/sipfrag;version=2.0"
Opener = Callable[[str], Agent]


def large(size: int) -> str:
    """A text of `size` bytes with every length of UTF-8 in it, no two stretches of it alike."""
    parts, length = [], 0
    while length < size:
        part = f"{length} é 世 🙂 "
        parts.append(part)
        length += len(part.encode())
    return "".join(parts).encode()[: size - 8].decode(errors="ignore").ljust(size // 2, ".") + " the end"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The pages with the libraries."""
    found = Pages(tmp_path_factory.mktemp("pages"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One Chromium for all."""
    with Chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


def company_over(transport: str, directory: Path, pages: Pages) -> Iterator[Company]:
    """A company whose DNS names its server for `transport` alone; the pages may open WebSockets."""
    with ExitStack() as stack:
        kamailio = Kamailio(directory / "kamailio")
        stack.callback(kamailio.stop)
        dns = stack.enter_context(DnsServer(zone(transport, (10, "127.0.0.1", kamailio.port)), "example.test"))
        text = backend(dns) + f"[websocket]\norigins = {pages.origin}\n"
        gateway = Daemon(directory / "wsgate", text)
        stack.callback(gateway.stop)
        yield Company(transport, dns, kamailio, gateway, directory)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory, pages: Pages) -> Iterator[Company]:
    """The company reached over UDP."""
    yield from company_over("udp", tmp_path_factory.mktemp("udp"), pages)


@pytest.fixture(scope="module")
def tcp_company(tmp_path_factory: pytest.TempPathFactory, pages: Pages) -> Iterator[Company]:
    """The company reached over TCP, for what UDP cannot carry."""
    yield from company_over("tcp", tmp_path_factory.mktemp("tcp"), pages)


@pytest.fixture
def opened(company: Company, browser: Chromium, pages: Pages) -> Iterator[Opener]:
    """opened(library) registers a new user; what every browser got is checked at the end."""
    yield from opener(company, browser, pages)


@pytest.fixture
def tcp_opened(tcp_company: Company, browser: Chromium, pages: Pages) -> Iterator[Opener]:
    """The same at the company reached over TCP."""
    yield from opener(tcp_company, browser, pages)


def opener(company: Company, browser: Chromium, pages: Pages) -> Iterator[Opener]:
    """See `opened`."""
    agents: list[Agent] = []

    def one(library: str) -> Agent:
        agents.append(Agent(browser, pages, library, company.gateway.url, f"{library}{next(NUMBER)}", PASSWORD))
        return agents[-1]

    yield one
    for agent in agents:
        agent.assert_well_served()
        agent.close()


@pytest.mark.parametrize("library", LIBRARIES)
def test_browser_calls_holds_resumes_sends_dtmf_and_hangs_up(company: Company, opened: Opener, library: str) -> None:
    agent = opened(library)
    steps = (
        Receive("INVITE", direction="recvonly"),
        Receive("INVITE", direction="sendrecv"),
        Receive("INFO"),
        Receive("INVITE", direction="sendrecv"),
        Receive("BYE"),
    )
    desk = company.desk(answering(*steps, directory=company.directory, name=f"held_{library}"))
    agent.do("call", f"sip:{desk.user}@example.test")
    assert agent.wait("progress")["status"] == 180
    agent.wait("established")
    agent.do("hold")
    agent.wait("renegotiated")
    agent.wait_direction("sendonly")
    agent.do("resume")
    agent.wait("renegotiated")
    agent.wait_direction("sendrecv")
    agent.do("dtmf", "5")
    desk.wait_for("received", "INFO")
    agent.do("renegotiate")
    agent.wait("renegotiated")
    agent.do("hangUp")
    agent.wait("ended")
    desk.done()
    assert "Signal=5" in desk.trace
    assert desk.trace.count("a=sendonly") == 1
    # I4: an offer of Chromium is too large for UDP.
    assert "GOT INVITE from tcp:" in company.kamailio.log
    wait_no_dialogs(company)


@pytest.mark.parametrize("library", LIBRARIES)
def test_desk_calls_holds_resumes_sends_dtmf_and_hangs_up(company: Company, opened: Opener, library: str) -> None:
    agent = opened(library)
    steps = (
        Request("INVITE", direction="sendonly"),
        Pause(200),
        Request("INFO", body=Body("application/dtmf-relay", "Signal=7\nDuration=160")),
        Request("INVITE", direction="sendrecv"),
        Pause(1000),
        Request("BYE"),
    )
    desk = company.caller(calling(*steps, directory=company.directory, name=f"holds_{library}"), agent.user)
    assert agent.wait("incoming")["from"].startswith("sip:phone@example.test")
    agent.do("answer")
    agent.wait("established")
    agent.wait("reinvite")
    agent.wait_direction("recvonly")
    assert agent.wait("dtmf")["tone"] == "7"
    agent.wait("reinvite")
    agent.wait_direction("sendrecv")
    agent.wait("ended")
    desk.done()
    wait_no_dialogs(company)


@pytest.mark.parametrize("library", LIBRARIES)
def test_desk_calls_and_browser_hangs_up(company: Company, opened: Opener, library: str) -> None:
    agent = opened(library)
    desk = company.caller(calling(Receive("BYE"), directory=company.directory, name=f"byed_{library}"), agent.user)
    agent.wait("incoming")
    agent.do("answer")
    agent.wait("established")
    agent.do("hangUp")
    agent.wait("ended")
    desk.done()
    wait_no_dialogs(company)


@pytest.mark.parametrize("library", LIBRARIES)
def test_browser_gives_up_before_the_desk_answers(company: Company, opened: Opener, library: str) -> None:
    agent = opened(library)
    desk = company.desk("uas_cancelled")
    agent.do("call", f"sip:{desk.user}@example.test")
    agent.wait("progress")
    agent.do("hangUp")
    desk.done()
    agent.page.wait("agent.take('ended') || agent.take('failed')")
    wait_no_dialogs(company)


@pytest.mark.parametrize("library", LIBRARIES)
def test_browser_transfers_the_desk(company: Company, opened: Opener, library: str) -> None:
    """REFER goes out, two NOTIFYs come back, and the call is still there to be ended (D2)."""
    agent = opened(library)
    event = "Event: refer"
    trying, done = (Body(FRAGMENT, f"SIP/2.0 {status}") for status in ("100 Trying", "200 OK"))
    steps = (
        Receive("REFER", "202 Accepted"),
        Request("NOTIFY", headers=(event, "Subscription-State: active;expires=60"), body=trying),
        Request("NOTIFY", headers=(event, "Subscription-State: terminated;reason=noresource"), body=done),
        Receive("BYE"),
    )
    desk = company.desk(answering(*steps, directory=company.directory, name=f"transferred_{library}"))
    agent.do("call", f"sip:{desk.user}@example.test")
    agent.wait("established")
    agent.do("transfer", "sip:third@example.test")
    agent.wait("notified", status=100)
    agent.wait("notified", status=200)
    agent.do("hangUp")
    desk.done()
    assert re.search(r"(?i)\nrefer-to: <?sip:third@example\.test>?\s", desk.trace)
    wait_no_dialogs(company)


@pytest.mark.parametrize("library", LIBRARIES)
def test_desk_transfers_the_browser(company: Company, opened: Opener, library: str) -> None:
    """REFER comes in, the browser calls a third party and says so in NOTIFYs, the first call is ended by the desk."""
    agent = opened(library)
    third = company.desk(answering(Receive("BYE"), directory=company.directory, name=f"third_{library}"))
    refer = Request("REFER", 202, headers=(f"Refer-To: <sip:{third.user}@example.test>",))
    file = calling(refer, Notified(), Request("BYE"), directory=company.directory, name=f"transfers_{library}")
    desk = company.caller(file, agent.user)
    agent.wait("incoming")
    agent.do("answer")
    agent.wait("established")
    assert agent.wait("referred")["to"] == f"sip:{third.user}@example.test"
    agent.wait("established")
    desk.done()
    assert "SIP/2.0 200 OK" in desk.trace.partition("NOTIFY")[2]
    agent.do("hangUp")
    third.done()
    wait_no_dialogs(company)


@pytest.mark.parametrize(("library", "other"), [LIBRARIES, LIBRARIES[::-1]])
def test_the_libraries_call_each_other_and_hear_each_other(
    company: Company, opened: Opener, library: str, other: str
) -> None:
    """Chromium on both ends: audio flows, hold and INFO pass both ways, 60 KB too."""
    caller, callee = opened(library), opened(other)
    caller.do("call", callee.uri)
    assert callee.wait("incoming")["from"] == caller.uri
    callee.do("answer")
    for agent in (caller, callee):
        agent.wait("established")
        agent.wait_media()
    for one, far in ((caller, callee), (callee, caller)):
        one.do("hold")
        one.wait("renegotiated")
        one.wait_direction("sendonly")
        far.wait_direction("recvonly")
        one.do("resume")
        one.wait("renegotiated")
        far.wait_direction("sendrecv")
        one.do("dtmf", "#")
        assert far.wait("dtmf")["tone"] == "#"
        text = large(60_000)
        one.do("info", "text/plain", text)
        assert far.wait("info", type="text/plain")["body"] == text
    for agent in (caller, callee):
        agent.wait_media()
    callee.do("hangUp")
    for agent in (caller, callee):
        agent.wait("ended")
    wait_no_dialogs(company)


@pytest.mark.parametrize("library", LIBRARIES)
def test_messages_in_utf_8_between_browser_and_desk(company: Company, opened: Opener, library: str) -> None:
    agent = opened(library)
    message = company.caller("uac_message", agent.user)
    message.done()
    received = agent.wait("message")
    # sipp ends every line with CRLF.
    assert received["body"] == "Grüße, κόσμε, 世界, 🙂\r\n"
    assert received["type"] == "text/plain;charset=utf-8"
    desk = company.desk("uas_message")
    agent.do("message", f"sip:{desk.user}@example.test", UNUSUAL)
    agent.wait("messageSent")
    desk.done()
    assert UNUSUAL in desk.trace


@pytest.mark.parametrize(("library", "other"), [LIBRARIES, LIBRARIES[::-1]])
def test_messages_between_the_libraries_in_utf_8_and_60_kb(
    company: Company, opened: Opener, library: str, other: str
) -> None:
    """Out over TCP (I4), in over UDP as Kamailio chooses: not a byte changes."""
    sender, receiver = opened(library), opened(other)
    for text in (UNUSUAL, large(60_000)):
        sender.do("message", receiver.uri, text)
        assert receiver.wait("message")["body"] == text
        sender.wait("messageSent")
    [*_, sent] = sender.messages("out", "MESSAGE")
    [*_, received] = receiver.messages("in", "MESSAGE")
    assert header(received, "Content-Length") == header(sent, "Content-Length") == str(len(large(60_000).encode()))


@pytest.mark.parametrize(("library", "other"), [LIBRARIES, LIBRARIES[::-1]])
def test_200_kb_in_message_and_info_over_tcp(
    tcp_company: Company, tcp_opened: Opener, library: str, other: str
) -> None:
    caller, callee = tcp_opened(library), tcp_opened(other)
    text = large(200_000)
    caller.do("message", callee.uri, text)
    assert callee.wait("message")["body"] == text
    caller.wait("messageSent")
    caller.do("call", callee.uri)
    callee.wait("incoming")
    callee.do("answer")
    for agent in (caller, callee):
        agent.wait("established")
    for one, far in ((caller, callee), (callee, caller)):
        one.do("info", "application/octet-stream", text)
        assert far.wait("info")["body"] == text
    caller.do("hangUp")
    callee.wait("ended")
    wait_no_dialogs(tcp_company)
