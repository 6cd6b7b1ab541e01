"""The web phone in Chromium against the daemon with its embedded registrar and its TURN server."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.interop.apache import Apache
from tests.interop.chromium import FAKE_DEVICES, Chromium, WebPhone, assert_call
from tests.interop.process import Process, accepts, free_port, wait_for

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = "phone.test"
PASSWORD = "correct horse"
USERS = ("alice", "bob", "carol")
FAKE_DEVICE, FAKE_CONSENT = FAKE_DEVICES
SILENT_PORT = "turn:127.0.0.1:10001"
"""A TURN address where nobody answers."""

INI = """
[wsgate]
user =
group =
drain_timeout = 1
key_file = {directory}/wsgate.key
control_socket = {directory}/wsgate.sock

[listener plain]
bind = 127.0.0.1:{plain}
tls = off
turn = off

[listener secure]
bind = 127.0.0.1:{secure}
tls = on
turn = off

[listener apache]
bind = 127.0.0.1:{relayed}
tls = off
turn = off
trusted_proxies = 127.0.0.1
tls_at_relay = on

[sip]
bind = 127.0.0.1:{sip}

[backend {domain}]
target = embedded

[registrar]
realm = {domain}
users = {directory}/users

[turn]
udp = 127.0.0.1:{turn}
tcp =
realm = {domain}
users = {directory}/users
relay_address = 127.0.0.1
relay_ports = {relay}-{relay_end}
peer_policy = call
"""


class PhoneSystem:
    """The daemon with two listeners, three users and TURN over UDP, on loopback.

    With `one_port` TURN is spoken on the port of the secure page and nowhere else. `turn` are further lines of [turn],
    `http_fallback` is that of the secure listener then.
    """

    def __init__(self, directory: Path, *, one_port: bool = False, turn: str = "", http_fallback: str = "") -> None:
        self.plain_port, self.secure_port, self.relayed_port = free_port(), free_port(), free_port()
        self._directory = directory
        self._ini = directory / "phone.ini"
        ports = {"plain": self.plain_port, "secure": self.secure_port, "relayed": self.relayed_port}
        relay = 61000 + 200 * secrets.randbelow(22)  # above what the kernel hands out, apart from other runs
        ports |= {"sip": free_port(), "turn": free_port(), "relay": relay, "relay_end": relay + 199}
        text = INI.format(directory=directory, domain=DOMAIN, **ports) + turn
        if one_port:
            listener = f"tls = on\nturn = on\nhttp_fallback = {http_fallback}"
            text = text.replace("tls = on\nturn = off", listener).replace(f"udp = 127.0.0.1:{ports['turn']}", "udp =")
        self._ini.write_text(text)
        for user in USERS:
            self._command("user", "add", "-c", self._ini, "--password-stdin", user)
        self.start()

    def _command(self, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", "wsgate", *map(str, arguments)]
        subprocess.run(command, input=f"{PASSWORD}\n", text=True, check=True, cwd=ROOT, timeout=30)

    def start(self) -> None:
        """Start the daemon and wait until it serves."""
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "wsgate", "-c", self._ini]
        self._process = Process(command, self._directory / "wsgate.log", env=environment)
        self._process.ready(lambda: accepts("127.0.0.1", self.plain_port) and self._healthy())

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.plain}/healthz", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """SIGTERM; asserts a clean end."""
        status, log = self._process.stop(), self._process.output
        assert status == 0, f"wsgate ended with {status}:\n{log[-6000:]}"
        assert "Traceback" not in log, log[-10000:]

    @property
    def plain(self) -> str:
        """The page over http."""
        return f"http://127.0.0.1:{self.plain_port}"

    @property
    def secure(self) -> str:
        """The page over https."""
        return f"https://127.0.0.1:{self.secure_port}"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhoneSystem]:
    found = PhoneSystem(tmp_path_factory.mktemp("system"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One with a fake microphone that beeps, which takes any certificate."""
    with Chromium(tmp_path_factory.mktemp("browser"), flags=["--ignore-certificate-errors"]) as found:
        yield found


Opener = Callable[..., WebPhone]


@pytest.fixture
def phone(system: PhoneSystem, browser: Chromium) -> Iterator[Opener]:
    """phone(user) opens a page and registers; phone() leaves the form empty. Further arguments are the query's."""
    with ExitStack() as stack:

        def opened(
            user: str = "", *, base: str = system.plain, missing: tuple[str, ...] = (), **query: str
        ) -> WebPhone:
            found = WebPhone(browser, base, query, missing=missing)
            stack.callback(found.page.close)
            return found.register(user, PASSWORD) if user else found

        yield opened


@pytest.mark.parametrize("policy", ["all", "relay"])
@pytest.mark.parametrize("scheme", ["plain", "secure"])
def test_two_pages_call_each_other(system: PhoneSystem, phone: Opener, scheme: str, policy: str) -> None:
    query = {"relay": "1"} if policy == "relay" else {}
    base = getattr(system, scheme)
    alice, bob = phone("alice", base=base, **query), phone("bob", base=base, **query)
    candidate = "relay" if policy == "relay" else None
    alice.call("bob")
    bob.answer()
    assert_call(alice, bob, candidate)
    assert alice.state["peer"] == "bob"
    assert bob.state["peer"] == "alice"
    alice.hang_up()
    assert "The call with bob has ended after 0:" in alice.wait_message("ended")
    assert "alice hung up after 0:" in bob.wait_message("hung-up")

    bob.call("alice@" + DOMAIN)
    alice.answer()
    assert_call(bob, alice, candidate)
    alice.hang_up()
    bob.wait_message("hung-up")
    bob.wait_data("call", "none")
    alice.wait_data("call", "none")


def test_page_sip_and_media_on_one_port(browser: Chromium, tmp_path: Path) -> None:
    """Rules E1, A5: `turns:` on the port of the page, with the credentials that came with the registration."""
    system = PhoneSystem(tmp_path, one_port=True)
    phones = [WebPhone(browser, system.secure, {"relay": "1"}, missing=()) for _ in range(2)]
    try:
        alice, bob = (phone.register(user, PASSWORD) for phone, user in zip(phones, USERS, strict=False))
        alice.call("bob")
        bob.answer()
        assert_call(alice, bob, "relay")
        for one in (alice, bob):
            assert one.stats()["relayProtocol"] == "tls"
        alice.hang_up()
        bob.wait_message("hung-up")
    finally:
        for phone in phones:
            phone.page.close()
        system.stop()


def test_media_without_turn_on_one_side(tmp_path: Path) -> None:
    """Rule P6: the host candidates of the other page are open for the relay, on loopback with allow_peers (P5)."""
    system = PhoneSystem(tmp_path, turn="allow_peers = 127.0.0.1/32\n")
    try:
        with Chromium(tmp_path, flags=["--allow-loopback-in-peer-connection"]) as browser:
            alice = WebPhone(browser, system.plain, {"relay": "1"}).register("alice", PASSWORD)
            bob = WebPhone(browser, system.plain, {"turn": SILENT_PORT}).register("bob", PASSWORD)
            for caller, callee, name in ((alice, bob, "bob"), (bob, alice, "alice")):
                caller.call(name)
                callee.answer()
                assert_call(caller, callee)
                assert alice.stats()["localCandidate"] == "relay"
                assert bob.stats()["localCandidate"] != "relay"
                caller.hang_up()
                callee.wait_message("hung-up")
    finally:
        system.stop()


@pytest.mark.parametrize("way", ["upgrade=websocket", "mod_proxy_wstunnel"])
def test_two_pages_of_an_apache_call_each_other_through_it(
    system: PhoneSystem, phone: Opener, tmp_path: Path, way: str
) -> None:
    # Apache has TLS, the gateway behind it has none; the page is relayed as an admin would for the phone at /page/.
    wstunnel = way == "mod_proxy_wstunnel"
    backend = f"127.0.0.1:{system.relayed_port}"
    site = f'ProxyPreserveHost On\nProxyPass "/page/" "http://{backend}/"'
    modules = ("proxy_http",) if wstunnel else ()
    httpd = Apache(tmp_path, backend, wstunnel=wstunnel, site=site, modules=modules)
    try:
        base = f"https://127.0.0.1:{httpd.port}/page"
        alice, bob = phone("alice", base=base, relay="1"), phone("bob", base=base, relay="1")
        alice.call("bob")
        bob.answer()
        assert_call(alice, bob, "relay")
        bob.hang_up()
        alice.wait_message("hung-up")
        bob.page.wait("document.getElementById('phone').dataset.call === 'none'")
    finally:
        httpd.stop()


def test_the_callee_hangs_up_then_the_next_call_works(phone: Opener) -> None:
    alice, bob = phone("alice"), phone("bob")
    for _ in range(2):
        alice.call("bob")
        bob.answer()
        alice.wait_data("call", "active")
        bob.wait_data("call", "active")
        bob.hang_up()
        assert "bob hung up" in alice.wait_message("hung-up")


def test_mute_silences_and_the_level_meters_move(phone: Opener) -> None:
    alice, bob = phone("alice"), phone("bob")
    alice.call("bob")
    bob.answer()
    assert_call(alice, bob)
    assert alice.peak("local") > 0.3
    assert bob.peak("remote") > 0.3
    alice.page.click("#mute")
    # The fake microphone beeps: what was on its way still sounds once, then whole seconds stay silent.
    wait_for(lambda: bob.peak("remote") < 0.1, "silence at the other side")
    assert alice.data("muted") == "yes"
    assert "microphone off" in alice.page.evaluate("document.getElementById('call-state').textContent")
    assert alice.page.evaluate("document.getElementById('mute').getAttribute('aria-pressed')") == "true"
    alice.page.click("#mute")
    assert alice.data("muted") == "no"
    wait_for(lambda: bob.peak("remote") > 0.3, "sound at the other side")


def test_tones_go_in_the_audio_stream(phone: Opener) -> None:
    alice, bob = phone("alice"), phone("bob")
    alice.call("bob")
    bob.answer()
    alice.wait_data("call", "active")
    bob.wait_data("call", "active")
    alice.press("15#")
    alice.page.do("press", key="9")
    alice.page.wait("window.wsgatePhone.state.tones.sent === '15#9'")
    assert "15#9" in alice.page.evaluate("document.getElementById('tones').textContent")
    assert bob.state["tones"]["received"] == ""


def test_tones_go_by_info(phone: Opener) -> None:
    alice, bob = phone("alice", dtmf="info"), phone("bob")
    alice.call("bob")
    bob.answer()
    alice.wait_data("call", "active")
    bob.wait_data("call", "active")
    alice.press("42*")
    bob.page.wait("window.wsgatePhone.state.tones.received === '42*'")
    assert "received 42*" in bob.page.evaluate("document.getElementById('tones').textContent")


def test_the_keypad_dials_and_the_keyboard_alone_calls_and_answers(phone: Opener) -> None:
    alice, bob = phone("alice"), phone("bob")
    alice.press("123")
    alice.page.click("#backspace")
    assert alice.page.evaluate("document.getElementById('target').value") == "12"
    alice.page.fill("#target", "bob")
    alice.page.do("press", key="Enter")
    bob.wait_data("call", "incoming")
    assert bob.page.evaluate("document.activeElement.id") == "answer"
    bob.page.do("press", key="Enter")
    alice.wait_data("call", "active")
    assert alice.page.evaluate("document.activeElement.id") == "hang-up"
    alice.page.do("press", key="Enter")
    bob.wait_message("hung-up")


def test_refusals_of_a_call_are_told(phone: Opener) -> None:
    alice, bob, carol = phone("alice"), phone("bob", ring="1"), phone("carol")
    alice.call("nobody")
    assert "nobody was not found" in alice.wait_message("not-found")
    alice.call("alice")
    assert "leads back to this phone" in alice.wait_message("own-address")
    alice.call("sips:bob@phone.test")
    alice.wait_message("bad-target")

    alice.call("carol")
    carol.wait_data("call", "incoming")
    carol.hang_up()
    assert "carol declined the call" in alice.wait_message("declined")
    carol.wait_message("rejected")

    alice.call("carol")
    carol.wait_data("call", "incoming")
    alice.hang_up()
    alice.wait_message("canceled")
    assert "Missed call from alice" in carol.wait_message("missed")

    alice.call("bob")
    assert "bob did not answer" in alice.wait_message("no-answer")
    bob.wait_message("missed")

    alice.call("carol")
    carol.answer()
    carol.wait_data("call", "active")
    bob.call("carol")
    assert "carol is busy" in bob.wait_message("busy")
    assert carol.data("call") == "active"
    carol.hang_up()
    alice.wait_message("hung-up")


def test_who_is_known_but_not_signed_in_is_unavailable(phone: Opener) -> None:
    alice, carol = phone("alice"), phone("carol")
    carol.page.click("#sign-out")
    carol.wait_data("registration", "none")
    alice.page.wait(
        """(async () => {
            const { state } = window.wsgatePhone;
            if (state.call === 'none' && state.message !== 'unavailable') window.wsgatePhone.call('carol');
            return state.message === 'unavailable';
        })()"""
    )
    assert alice.data("call") == "none"


def test_a_wrong_password_is_told_and_the_right_one_then_works(phone: Opener) -> None:
    alice = phone()
    alice.sign_in("alice", "wrong")
    assert "The user name or the password is wrong" in alice.wait_message("wrong-password")
    assert alice.page.evaluate("document.activeElement.id") == "password"
    alice.sign_in("mallory", "wrong")
    alice.wait_message("wrong-password")
    alice.register("alice", PASSWORD)
    assert alice.data("message") == ""


@pytest.mark.parametrize(
    ("devices", "code", "text"),
    [
        ((FAKE_DEVICE,), "microphone-refused", "The microphone was refused"),
        ((FAKE_CONSENT,), "microphone-absent", "No microphone was found"),
    ],
)
def test_no_microphone_is_told_on_both_sides(
    system: PhoneSystem, phone: Opener, tmp_path: Path, devices: tuple[str, ...], code: str, text: str
) -> None:
    bob = phone("bob")
    with Chromium(tmp_path, devices=devices) as poor:
        alice = WebPhone(poor, system.plain).register("alice", PASSWORD)
        alice.call("bob")
        assert text in alice.wait_message(code)
        assert alice.data("call") == "none"
        bob.call("alice")
        alice.answer()
        assert text in alice.wait_message(code)
        bob.wait_message("unavailable")


def test_without_jssip_the_page_says_how_to_get_it(phone: Opener) -> None:
    found = phone(missing=("jssip.js",))
    text = found.wait_message("no-jssip")
    assert "npm install" in text
    assert "jssip.js" in text
    assert found.page.evaluate("document.getElementById('sign-in-button').disabled") is True


def test_no_turn_is_told(phone: Opener) -> None:
    alice, bob = phone("alice", relay="1", turn=SILENT_PORT), phone("bob")
    alice.call("bob")
    assert "No TURN server could be used" in alice.wait_message("no-turn")
    assert alice.data("call") == "none"
    bob.call("alice")
    alice.answer()
    alice.wait_message("no-turn")
    bob.wait_message("unavailable")


def test_wrong_turn_credentials_are_told(phone: Opener) -> None:
    alice = phone("alice", relay="1", turnuser="alice", turnpass="wrong")
    alice.call("bob")
    assert "The TURN server refused" in alice.wait_message("turn-refused")


def test_a_failed_audio_connection_is_told_on_both_sides(phone: Opener) -> None:
    # The relay refuses loopback addresses other than its own ports (P5), so these two find no way to each other.
    alice, bob = phone("alice", relay="1"), phone("bob", turn=SILENT_PORT)
    alice.call("bob")
    bob.answer()
    assert "No audio connection" in alice.wait_message("ice-failed", 60)
    assert "No audio connection" in bob.wait_message("ice-failed", 60)
    assert alice.data("call") == bob.data("call") == "none"


def test_an_untrusted_certificate_is_told_with_the_address_to_open(system: PhoneSystem, tmp_path: Path) -> None:
    with Chromium(tmp_path) as strict:
        found = WebPhone(strict, system.plain, {"server": f"wss://127.0.0.1:{system.secure_port}/ws"})
        found.sign_in("alice", PASSWORD)
        assert "does not trust its certificate" in found.wait_message("certificate")
        assert found.page.evaluate("document.querySelector('#message a').href") == f"{system.secure}/"


def test_an_unreachable_server_and_a_refused_websocket_are_told(system: PhoneSystem, phone: Opener) -> None:
    found = phone(server=f"ws://127.0.0.1:{free_port()}/ws")
    found.sign_in("alice", PASSWORD)
    assert "cannot be reached" in found.wait_message("server-unreachable")
    found = phone(server=f"ws://127.0.0.1:{system.plain_port}/elsewhere")
    found.sign_in("alice", PASSWORD)
    assert "did not open the WebSocket" in found.wait_message("websocket-refused")
    found = phone(base=system.secure, server="ws://127.0.0.1/ws")
    found.sign_in("alice", PASSWORD)
    assert "wss:" in found.wait_message("insecure-server")


def test_a_lost_connection_is_told_and_comes_back(browser: Chromium, tmp_path: Path) -> None:
    own = PhoneSystem(tmp_path)
    found = WebPhone(browser, own.plain).register("alice", PASSWORD)
    own.stop()
    found.wait_message("connection-lost")
    assert found.data("registration") in ("lost", "connecting")
    own.start()
    found.wait_data("registration", "registered", 40)
    assert found.data("message") == ""
    found.page.close()
    own.stop()


def test_a_call_whose_media_stops_says_so(browser: Chromium, tmp_path: Path) -> None:
    system = PhoneSystem(tmp_path)
    alice, bob = (WebPhone(browser, system.plain, {"relay": "1"}).register(name, PASSWORD) for name in ("alice", "bob"))
    try:
        alice.call("bob")
        bob.answer()
        assert_call(alice, bob, "relay")
        text = "document.getElementById('call-state').textContent"
        assert alice.page.evaluate(text) == "Connected"
        system.stop()  # the TURN server with it
        alice.page.wait(f"{text} === 'Connection interrupted…'", 30)
        assert alice.data("call") == "active"
    finally:
        alice.page.close()
        bob.page.close()


def test_the_user_is_remembered_and_the_password_is_not(phone: Opener) -> None:
    found = phone()
    found.page.click("#settings summary")
    found.page.do("check", selector="#relay")
    found.register("alice", PASSWORD)
    stored = found.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert "alice" in stored
    assert PASSWORD not in stored
    found.page.do("reload")
    found.page.wait("document.getElementById('phone').dataset.ready === 'yes'")
    fields = found.page.evaluate("['user', 'domain', 'password'].map((id) => document.getElementById(id).value)")
    assert fields == ["alice", DOMAIN, ""]
    assert found.page.evaluate("document.getElementById('relay').checked") is True


def test_the_page_keeps_to_itself_and_to_its_policy(system: PhoneSystem, phone: Opener) -> None:
    alice, bob = phone("alice"), phone("bob")
    alice.call("bob")
    bob.answer()
    alice.wait_data("call", "active")
    policy = alice.page.response["headers"]["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert {urlsplit(url).netloc for url in alice.page.requests()} == {urlsplit(system.plain).netloc}
    assert [line for line in alice.page.console() if line.startswith(("error", "pageerror"))] == []


def test_every_control_has_a_name_and_the_states_are_announced(phone: Opener) -> None:
    found = phone()
    nameless = found.page.evaluate(
        """[...document.querySelectorAll('input, select, button')]
            .filter(({ labels, ariaLabel, textContent }) => !(labels?.length || ariaLabel || textContent.trim()))
            .map(({ id }) => id)"""
    )
    assert nameless == []
    attributes = found.page.evaluate(
        """['call-state', 'message', 'identity', 'timer', 'remote-level'].map((id) =>
            document.getElementById(id).getAttribute('role'))"""
    )
    assert attributes == ["status", "alert", "status", "timer", "meter"]
    assert found.page.evaluate("document.getElementById('call-state').getAttribute('aria-live')") == "polite"
    assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_message_code_that_the_page_uses_has_its_sentence() -> None:
    directory = ROOT / "wsgate" / "phone"
    command = ["node", str(ROOT / "tests/interop/phone/messages.mjs"), str(directory / "messages.js")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    found = json.loads(done.stdout)
    code = "".join((directory / name).read_text() for name in ("line.js", "phone.js", "settings.js"))
    pattern = r'(?:showMessage\(|message: |\? |" : |return |TypeError\(|abandon\()"([a-z]+(?:-[a-z]+)+)(?=")'
    used = {*found["used"], *re.findall(pattern, code)}
    assert {"no-jssip", "ice-failed", "turn-refused", "connection-lost", "bad-server"} <= used
    assert used <= set(found["texts"])
    assert all(text and "undefined" not in text for text in found["texts"].values())
