"""The web phone in Chromium against the daemon: what it says, whatever goes wrong, and what it keeps to itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.interop.chromium import FAKE_DEVICES, Chromium, WebPhone, assert_call
from tests.interop.phone_system import DOMAIN, PASSWORD, ROOT, SILENT_PORT, Opener, PhoneSystem
from tests.interop.process import free_port

pytestmark = pytest.mark.timeout(180)

FAKE_DEVICE, FAKE_CONSENT = FAKE_DEVICES


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
    try:
        found = WebPhone(browser, own.plain).register("alice", PASSWORD)
        own.stop()
        found.wait_message("connection-lost")
        assert found.data("registration") in ("lost", "connecting")
        own.start()
        found.wait_data("registration", "registered", 40)
        assert found.data("message") == ""
        found.page.close()
        own.stop()
    finally:
        own.end()


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
        is_active = "document.getElementById('phone').dataset.call === 'active'"
        alice.page.wait(f"{text} === 'Connection interrupted…' && {is_active}")
    finally:
        alice.page.close()
        bob.page.close()
        system.end()


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
