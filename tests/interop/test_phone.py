"""The web phone in Chromium against the daemon: calls, their media, tones and keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.apache import Apache
from tests.interop.chromium import Chromium, WebPhone, assert_call
from tests.interop.phone_system import DOMAIN, PASSWORD, SILENT_PORT, USERS, Opener, PhoneSystem
from tests.interop.process import wait_for

pytestmark = pytest.mark.timeout(180)


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
    assert "The call with bob has ended after " in alice.wait_message("ended")
    assert "alice hung up after " in bob.wait_message("hung-up")

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
    wait_for(lambda: alice.peak("local") > 0.3, "the own sound")
    wait_for(lambda: bob.peak("remote") > 0.3, "the sound of the other side")
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
