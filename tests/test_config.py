"""The ini file: every option accepted and typed, every mistake named with file, section, option and what is allowed."""

import configparser
import dataclasses
import enum
import ipaddress
from pathlib import Path

import pytest

from wsgate.addr import Address, Transport
from wsgate.config import SELF_SIGNED_CERTIFICATE, Configuration
from wsgate.errors import ConfigurationError
from wsgate.handover import Endpoint, Files
from wsgate.ini import SECTIONS, load, parse
from wsgate.settings import Switch

SHIPPED = Path(__file__).parent.parent / "conf" / "wsgate.ini"
DEMO = SHIPPED.with_name("demo.ini")
LISTENER = "[listener web]\nbind = 127.0.0.1:0\ntls = off\n"


def read(text: str) -> Configuration:
    return parse(LISTENER + text, "/etc/wsgate/wsgate.ini")


def refused(text: str, base: str = LISTENER) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        parse(base + text, "/etc/wsgate/wsgate.ini")
    assert caught.value.file == "/etc/wsgate/wsgate.ini"
    assert str(caught.value).startswith("/etc/wsgate/wsgate.ini")
    return caught.value


def shipped_options() -> list[tuple[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    parser.read(SHIPPED, encoding="utf-8")
    return [(title, option) for title in parser.sections() for option in parser.options(title)]


@pytest.mark.parametrize(
    ("bind", "fallback"),
    [
        ("0.0.0.0:8443", "127.0.0.1:8443"),
        ("[::]:8443", "[::1]:8443"),
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("127.0.0.1:8443", "localhost:8443"),
        ("127.0.0.1:8443", "0.0.0.0:8443"),
        ("127.0.0.1:8443", "127.0.0.1:5060"),
        ("127.0.0.1:8443", "127.0.0.1:0"),
    ],
)
def test_http_fallback_is_never_our_own_port(bind: str, fallback: str):
    error = refused("", f"[listener web]\nbind = {bind}\nhttp_fallback = {fallback}\n")
    assert (error.section, error.option) == ("listener web", "http_fallback")


@pytest.mark.parametrize(
    "fallback", ["127.0.0.1:80", "[::1]:8080", "192.0.2.9:443", "apache.test:80", "127.0.0.2:8443"]
)
def test_http_fallback_may_be_another_server(fallback: str):
    text = f"[listener web]\nbind = 127.0.0.1:8443\nhttp_fallback = {fallback}\n"
    assert any("the web phone stands at /" in notice for notice in parse(text, "x").notices)
    quiet = parse(text + "[web]\nphone = off\n", "x")
    assert not any("phone" in notice for notice in quiet.notices)
    assert str(quiet.listeners["web"].http_fallback) == fallback


def test_the_shipped_file_is_good_and_says_nothing_that_startles():
    configuration = load(SHIPPED)
    assert configuration.path == str(SHIPPED)
    assert configuration.directory == SHIPPED.parent
    assert list(configuration.listeners) == ["public", "apache"]
    assert configuration.listeners["apache"].trusted_proxies == tuple(
        map(ipaddress.ip_network, ("127.0.0.1/32", "::1/128"))
    )
    assert configuration.backends["example.com"].transports == tuple(Transport)
    assert configuration.self_signed
    assert [notice for notice in configuration.notices if "no effect" in notice] == []


def test_the_shipped_file_holds_every_option_of_every_section():
    shipped = {(title.split()[0], option) for title, option in shipped_options()}
    known = {(kind, field.name) for kind, entry in SECTIONS.items() for field in dataclasses.fields(entry.settings)}
    assert shipped == known


def test_the_shipped_values_are_the_defaults():
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    parser.read(SHIPPED, encoding="utf-8")
    examples = {"bind", "tls", "turn", "target", "trusted_proxies", "tls_at_relay"}
    for title in parser.sections():
        fields = {field.name: field for field in dataclasses.fields(SECTIONS[title.split()[0]].settings)}
        for option, text in parser.items(title):
            if option not in examples or title not in ("listener public", "listener apache", "backend example.com"):
                assert fields[option].metadata["parse"](text) == fields[option].default, (title, option)


@pytest.mark.parametrize(("title", "option"), shipped_options())
def test_every_option_is_typed_and_says_what_is_allowed(title: str, option: str):
    field = next(f for f in dataclasses.fields(SECTIONS[title.partition(" ")[0]].settings) if f.name == option)
    assert field.metadata["allowed"]
    assert isinstance(field.default, (str, int, float, bool, tuple, Switch, enum.Enum, Address, type(None)))


def test_the_demo_is_good():
    configuration = load(DEMO)
    assert configuration.embedded_domains == ("example.com",)
    assert configuration.turn is not None
    assert configuration.turn.users == configuration.registrar.users
    assert configuration.notices == ()


def test_values_have_their_types():
    configuration = read(
        "[wsgate]\nlog_level = DEBUG\nuser =\n[websocket]\norigins = https://a.test, https://b.test\n"
        "[sip]\nbind = 192.0.2.1:5062, [2001:db8::1]:5062\npublic = gate.test:443\n[limits]\nmemory_high = 75%\n"
        "[backend Example.COM.]\ntarget = sip:pbx.example.com\ntransports = ws, udp\n"
        "[turn]\nrelay_ports = 50000-50100\n"
    )
    assert configuration.process.user == ""
    assert configuration.process.log_level.value == "debug"
    assert configuration.websocket.origins == ("https://a.test", "https://b.test")
    assert configuration.sip.bind == (Address("192.0.2.1", 5062), Address("2001:db8::1", 5062))
    assert configuration.sip.public == Address("gate.test", 443)
    assert configuration.limits.memory_high == 0.75
    assert configuration.backends["example.com"].transports == (Transport.WS, Transport.UDP)
    assert configuration.turn is not None
    assert configuration.turn.relay_ports == (50000, 50100)


def test_comments_percent_signs_and_semicolons_in_values():
    configuration = read("[turn]\nshared_secret = 100%sure;yes, two ; the old one\nrealm = r ; x\n")
    assert configuration.turn is not None
    assert configuration.turn.shared_secret == ("100%sure;yes", "two")


def test_auto_is_none():
    configuration = read("[wsgate]\nuser = auto\n[sip]\nadvertise = AUTO\npublic = auto\n")
    assert (configuration.process.user, configuration.sip.advertise, configuration.sip.public) == (None, None, None)


def test_turn_is_none_where_it_is_absent_or_off():
    assert read("").turn is None
    assert read("[turn]\nenabled = off\n").turn is None
    assert read("[turn]\n").turn is not None


@pytest.mark.parametrize(
    ("text", "section", "option", "says"),
    [
        ("[wsgate]\nlog_levle = info\n", "wsgate", "log_levle", "did you mean log_level?"),
        ("[wbsocket]\n", "wbsocket", "", "did you mean [websocket]?"),
        ("[lisener public]\n", "lisener public", "", "did you mean [listener NAME]?"),
        ("[zzz]\n", "zzz", "", "unknown section (allowed: [wsgate]"),
        ("[DEFAULT]\nx = 1\n", "DEFAULT", "", "unknown section"),
        ("[sip]\nzzz = 1\n", "sip", "zzz", "unknown option (allowed: bind"),
        ("[sip extra]\n", "sip extra", "", "takes no name"),
        ("[listener]\nbind = 127.0.0.1:1\n", "listener", "", "needs a name"),
        ("[backend]\n", "backend", "", "needs a name"),
        ("[sip]\nflow_timer = soon\n", "sip", "flow_timer", "'soon' cannot be used: it is not a number"),
        ("[sip]\nflow_timer = 9\n", "sip", "flow_timer", "a whole number from 10 to 86400"),
        ("[sip]\nadd_received = maybe\n", "sip", "add_received", "(allowed: on, off)"),
        ("[sip]\npublic = gate.test\n", "sip", "public", "the port is missing"),
        ("[sip]\npublic = http://a.test:80\n", "sip", "public", "public: not host:port: 'http://a.test:80' (allowed"),
        ("[sip]\nadd_received = on # why\n", "sip", "add_received", 'a comment begins with ";" after a space (allowed'),
        ("[turn]\nrelay_ports = 100\n", "turn", "relay_ports", "relay_ports: '100' is not a range of ports (allowed"),
        ("[turn]\nrelay_ports = -9-5\n", "turn", "relay_ports", "is not a range of ports"),
        ("[limits]\nmemory_high = 80\n", "limits", "memory_high", "a percentage"),
        ("[wsgate]\nkey_file =\n", "wsgate", "key_file", "a file name"),
        ("[sip]\nbind =\n", "sip", "bind", "needs an address"),
        ("[sip]\nbind = localhost:5060\n", "sip", "bind", "no IP address"),
        ("[sip]\nbind = 127.0.0.1:99999\n", "sip", "bind", "not a port"),
        ("[listener x]\n", "listener x", "bind", "needs an address"),
        ("[listener x]\nbind = 127.0.0.1:1\nprivate_key = k\n", "listener x", "certificate", "needs its certificate"),
        ("[listener x]\nbind = 127.0.0.1:1\nproxy_protocol = on\n", "listener x", "trusted_proxies", "believed"),
        ("[listener x]\nbind = 127.0.0.1:1\ntls_at_relay = on\n", "listener x", "trusted_proxies", "believed"),
        ("[websocket]\npath = ws\n", "websocket", "path", "no path"),
        ("[backend a.test]\n", "backend a.test", "target", "the target is missing"),
        ("[backend a.test]\ntarget = pbx\n", "backend a.test", "target", "sip:"),
        ("[backend a.test]\ntarget = embedded\ntransports =\n", "backend a.test", "transports", "udp"),
        ("[backend a.test]\ntarget = embedded\ntransports = carrier\n", "backend a.test", "transports", "udp, tcp"),
        ("[backend a.test]\ntarget = embedded\n[backend A.Test]\ntarget = embedded\n", "backend A.Test", "", "twice"),
        ("[backend a.test]\ntarget = sip:b\nclient_private_key = k\n", "backend a.test", "client_certificate", "needs"),
        ("[sip]\ntls_bind = 127.0.0.1:5061\n", "sip", "tls_bind", "the first [listener ...] with TLS"),
        ("[registrar]\nmin_expires = 100\nmax_expires = 10\n", "registrar", "min_expires", "above"),
        ("[registrar]\ndigest_algorithms =\n", "registrar", "digest_algorithms", "MD5"),
        ("[turn]\nmin_lifetime = 700\nmax_lifetime = 600\n", "turn", "min_lifetime", "above"),
        ("[turn]\nrelay_address = relay.test\n", "turn", "relay_address", "no IP address"),
        ("[turn]\nrelay_address = 0.0.0.0\n", "turn", "relay_address", "no address of one host"),
        ("[turn]\nrelay_address = 192.0.2.1, 192.0.2.2\n", "turn", "relay_address", "a second address"),
        ("[turn]\nexternal_address = 192.0.2.1, 192.0.2.2\n", "turn", "external_address", "a second address"),
        (
            "[turn]\nrelay_address = 192.0.2.1\nexternal_address = 2001:db8::1\n",
            "turn",
            "external_address",
            "a family that relay_address has not",
        ),
        ("[turn]\nrealm =\n", "turn", "realm", "empty"),
        ("[turn]\nrealm = a:b\n", "turn", "realm", "colon"),
        (f"[turn]\nrealm = {'r' * 128}\n", "turn", "realm", "128 characters"),
        (f"[turn]\nsoftware = {'s' * 128}\n", "turn", "software", "128 characters"),
        ("[turn]\nuris = http://turn.test\n", "turn", "uris", "does not begin with"),
        ("[turn]\nrelay_ports = 50000\n", "turn", "relay_ports", "LOW-HIGH"),
        ("[web]\nmetrics_from = here\n", "web", "metrics_from", "CIDR"),
        ("[sip]\nbind = 127.0.0.1:1\nbind = 127.0.0.1:2\n", "sip", "bind", "stands twice (line 6)"),
        ("[sip]\n[sip]\n", "sip", "", "stands twice (line 5)"),
    ],
)
def test_mistakes_are_named(text: str, section: str, option: str, says: str):
    error = refused(text)
    assert (error.section, error.option) == (section, option)
    assert says in str(error)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[listener a]\nbind = 0.0.0.0:8000\ntls = off\n", "[listener b]\nbind = 127.0.0.1:8000\ntls = off\n"),
        ("[listener a]\nbind = 127.0.0.1:8000, 127.0.0.1:8000\ntls = off\n", ""),
        ("[listener a]\nbind = [::]:8000\n", "[listener b]\nbind = [::1]:8000\n"),
        ("[listener a]\nbind = 127.0.0.1:5060\n", ""),
        ("[sip]\nbind = 127.0.0.1:3478\n", "[turn]\nudp = 0.0.0.0:3478\n"),
        ("[sip]\nbind = 127.0.0.1:0, 127.0.0.1:0\n", ""),
    ],
)
def test_one_address_and_port_cannot_be_bound_twice(one: str, other: str):
    assert "is taken by" in str(refused(one + other))


def test_the_same_port_of_other_families_addresses_and_protocols_is_free():
    configuration = read(
        "[listener a]\nbind = 0.0.0.0:3478, [::]:3478\n[listener b]\nbind = 127.0.0.1:9\n"
        "[listener c]\nbind = 127.0.0.2:9\n"
        "[turn]\nudp = 0.0.0.0:3478, [::]:3478\ntcp =\n"
    )
    assert len(configuration.endpoints()) == 9


def test_a_file_without_a_listener_serves_nobody():
    assert "no [listener NAME]" in str(refused("[sip]\n", base=""))


def test_options_of_features_that_are_not_there_say_so():
    notices = read("[trace]\nhep = 192.0.2.1:9060\npcap =\n").notices
    assert [notice.removeprefix("/etc/wsgate/wsgate.ini ") for notice in notices if "no effect" in notice] == [
        "[trace] hep: no effect: this version does not have tracing to a collector yet",
    ]


def test_what_serves_nobody_is_said():
    assert any("no SIP domain is served" in notice for notice in read("").notices)
    nobody = "[turn]\ncredentials_with_register = off\n"
    assert any("STUN alone is served" in notice for notice in read(nobody).notices)
    assert not any("STUN alone is served" in notice for notice in read(nobody + "users = u\n").notices)
    assert not any("STUN alone is served" in notice for notice in read("[turn]\n").notices), "who registers can (A5)"


def test_a_peer_policy_that_knows_no_calls_is_said():
    """Rule P6 speaks of credentials that came with a registration."""
    assert not any("peer_policy" in notice for notice in read("[turn]\npeer_policy = call\n").notices)
    without = "[turn]\nusers = u\ncredentials_with_register = off\n"
    assert any("peer_policy" in notice for notice in read(without + "peer_policy = call\n").notices)
    assert not any("peer_policy" in notice for notice in read(without).notices)


def test_mobility_with_several_workers_is_said():
    """Rule E4: a ticket is good at one worker."""
    assert any("mobility" in notice for notice in read("[wsgate]\nworkers = 2\n[turn]\nmobility = on\n").notices)
    assert not any("mobility" in notice for notice in read("[turn]\nmobility = on\n").notices)


def test_tokens_let_somebody_relay():
    off = "[turn]\ncredentials_with_register = off\n"
    assert any("nobody can relay" in notice for notice in read(off).notices)
    configuration = read(off + "oauth_keys = tokens\n")
    assert not any("nobody can relay" in notice for notice in configuration.notices)
    assert "tokens" in [reference.name for reference in configuration.files()]


def test_a_second_address_brings_three_sockets_and_needs_the_first_by_name():
    """RFC 5780 §6; rule S4."""
    udp = "[turn]\nudp = 127.0.0.1:3478\nalternate_address = 127.0.0.2\n"
    found = [endpoint for endpoint in read(udp).endpoints() if endpoint.kind == "turn-alternate-udp"]
    assert [str(endpoint.address) for endpoint in found] == ["127.0.0.1:3479", "127.0.0.2:3478", "127.0.0.2:3479"]
    with pytest.raises(ConfigurationError, match=r"\[turn\] udp: 0\.0\.0\.0:3478 does not say"):
        read("[turn]\nalternate_address = 127.0.0.2\n")


def test_a_relay_engine_that_is_not_there_is_said():
    assert any("compiled engine" in notice for notice in read("[turn]\nrelay_engine = compiled\n").notices)
    assert not any("compiled" in notice for notice in read("[turn]\nrelay_engine = auto\n").notices)


def test_every_socket_is_listed():
    turn = "udp = 127.0.0.1:3478\ntcp = 127.0.0.1:3478\ntls = 127.0.0.1:5349\n"
    configuration = read(f"[sip]\nbind = 127.0.0.1:5070\n[turn]\n{turn}")
    assert configuration.endpoints() == (
        Endpoint("listener", "web", Address("127.0.0.1", 0)),
        Endpoint("sip-udp", "sip", Address("127.0.0.1", 5070)),
        Endpoint("sip-tcp", "sip", Address("127.0.0.1", 5070)),
        Endpoint("turn-udp", "turn", Address("127.0.0.1", 3478)),
        Endpoint("turn-tcp", "turn", Address("127.0.0.1", 3478)),
        Endpoint("turn-tls", "turn", Address("127.0.0.1", 5349)),
    )
    turn_places = ("[turn] udp", "[turn] tcp", "[turn] tls")
    assert configuration.places() == ("[listener web] bind", "[sip] bind", "[sip] bind", *turn_places)


def test_sip_over_tls_shows_the_certificate_of_the_first_listener_with_tls():
    listeners = "[listener a]\nbind = 127.0.0.1:1\ntls = off\n[listener b]\nbind = 127.0.0.1:2\ncertificate = b.pem\n"
    configuration = read(f"{listeners}[sip]\nbind = 127.0.0.1:5060\ntls_bind = 127.0.0.1:5061, 127.0.0.2:5061\n")
    tls = [endpoint for endpoint in configuration.endpoints() if endpoint.kind == "sip-tls"]
    assert tls == [Endpoint("sip-tls", "sip", Address(host, 5061)) for host in ("127.0.0.1", "127.0.0.2")]
    assert not any(endpoint.datagram for endpoint in tls)
    assert configuration.places()[-2:] == ("[sip] tls_bind", "[sip] tls_bind")
    assert configuration.tls_listener == "b"


def test_the_certificate_of_turn_is_that_of_the_first_listener_with_tls():
    """Rule E1: its own where it has one, self-signed where nobody has."""
    own = read("[turn]\ntls = 127.0.0.1:5349\ncertificate = t.pem\n").turn
    listener = read("[listener tls]\nbind = 127.0.0.1:1\ncertificate = l.pem\nprivate_key = l.key\n[turn]\n").turn
    nobody = read("[turn]\ntls = 127.0.0.1:5349\n")
    assert own is not None
    assert listener is not None
    assert nobody.turn is not None
    assert (own.certificate, own.private_key) == ("t.pem", "t.pem")
    assert (listener.certificate, listener.private_key) == ("l.pem", "l.key")
    assert nobody.turn.certificate == SELF_SIGNED_CERTIFICATE
    assert nobody.self_signed


def test_turn_on_a_listener_needs_the_turn_section():
    with pytest.raises(ConfigurationError, match="no TURN server"):
        read("[listener a]\nbind = 127.0.0.1:1\ntls = off\nturn = on\n")
    with pytest.raises(ConfigurationError, match="no TURN server"):
        read("[listener a]\nbind = 127.0.0.1:1\ntls = off\nturn = on\n[turn]\nenabled = off\n")


def test_every_file_is_listed_once():
    configuration = read(
        "[listener tls]\nbind = 127.0.0.1:1\ncertificate = both.pem\n[listener auto]\nbind = 127.0.0.1:2\ntls = auto\n"
        "[backend a.test]\ntarget = embedded\n[turn]\nusers = users.htdigest\nshared_secret_file = s\n"
    )
    names = [reference.name for reference in configuration.files()]
    assert names == ["wsgate.key", "both.pem", SELF_SIGNED_CERTIFICATE, "wsgate-key.pem", "users.htdigest", "s"]
    assert configuration.listeners["tls"].private_key == "both.pem"
    assert configuration.listeners["auto"].certificate == SELF_SIGNED_CERTIFICATE


def test_no_user_file_is_needed_without_the_embedded_registrar():
    names = [reference.name for reference in read("[registrar]\nusers = u\n").files()]
    assert "u" not in names


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[sip]\nbind = \xff\n", "line 2 is not text in UTF-8"),
        (b"bind = 1\n", "line 1 stands before the first [section]"),
        (b"[sip]\nno equals sign\n", "line 2 cannot be understood"),
        (b"[sip\n", "stands before the first"),
    ],
)
def test_files_that_are_no_ini_files(tmp_path: Path, data: bytes, says: str):
    path = tmp_path / "bad.ini"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="No such file"):
        load(tmp_path / "none.ini")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path):
    path = tmp_path / "bom.ini"
    path.write_bytes(b"\xef\xbb\xbf" + LISTENER.encode())
    assert list(load(path).listeners) == ["web"]


def test_files_are_descriptors_where_they_were_handed_over(tmp_path: Path):
    files = Files(tmp_path, {"a.pem": 7})
    assert files.path("a.pem") == "/proc/self/fd/7"
    assert files.path("b.pem") == str(tmp_path / "b.pem")
    assert files.path("/etc/c.pem") == "/etc/c.pem"
    assert files.named("cannot use /proc/self/fd/7 (and 71)") == f"cannot use {tmp_path}/a.pem (and 71)"
    assert files.named("cannot use /proc/self/fd/71") == "cannot use /proc/self/fd/71"


def test_a_section_is_a_frozen_dataclass():
    for entry in SECTIONS.values():
        assert dataclasses.is_dataclass(entry.settings)
        with pytest.raises(dataclasses.FrozenInstanceError):
            entry.settings().anything = 1


def test_each_worker_has_its_own_port_of_the_backend_side_and_its_part_of_the_others():
    """V1: `port + k` for UDP, TCP and TLS; port 0 stays any free one."""
    text = "[wsgate]\nworkers = 3\n[listener s]\nbind = 127.0.0.1:4430\n"
    configuration = read(text + "[sip]\nbind = 127.0.0.1:5060, 127.0.0.2:0\ntls_bind = 127.0.0.1:5070\n")
    found = {(one.kind, one.worker, str(one.address)) for one in configuration.endpoints()}
    for number in range(3):
        assert ("sip-udp", number, f"127.0.0.1:{5060 + number}") in found
        assert ("sip-tcp", number, f"127.0.0.1:{5060 + number}") in found
        assert ("sip-tls", number, f"127.0.0.1:{5070 + number}") in found
        assert ("sip-udp", number, "127.0.0.2:0") in found
        assert ("listener", number, "127.0.0.1:4430") in found
    assert len(found) == len(configuration.endpoints()) == len(configuration.places()) == 3 * 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sip]\nbind = 127.0.0.1:65534\n", "worker 2 would need port 65536"),
        ("[listener s]\nbind = 127.0.0.1:5062\ntls = off\n[sip]\nbind = 127.0.0.1:5060\n", "is taken by"),
        ("[turn]\nrelay_ports = 50000-50005\n", "3 workers cannot share so few ports"),
    ],
)
def test_ports_that_do_not_suffice_for_all_workers_are_refused(text: str, says: str):
    assert says in str(refused("[wsgate]\nworkers = 3\n" + text))


def test_each_worker_has_a_state_file_of_its_own():
    configuration = read("[wsgate]\nworkers = 3\n[sip]\nstate_file = calls\n")
    assert [reference.name for reference in configuration.states()] == ["calls", "calls.1", "calls.2"]


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        ("sip", "direct_targets", "[2001:db8::/32]5060"),
        ("sip", "direct_targets", "[2001:db8::/32"),
        ("sip", "direct_targets", "[2001:db8::/32]:"),
        ("sip", "direct_targets", "10.0.0.0/8:99999"),
        ("sip", "direct_targets", "10.0.0.0/8:0"),
        ("sip", "direct_targets", "10.0.0.0/8:-1"),
        ("sip", "advertise", "203.0.113.9:5060"),
        ("sip", "advertise", "[2001:db8::1]:5060"),
        ("sip", "advertise", "gate example"),
        ("sip", "advertise", "gate/example"),
        ("sip", "advertise", "192.0.2.1, 192.0.2.2"),
        ("sip", "aliases", "sip:gate.example.com"),
        ("sip", "aliases", "gate.example.com, bad host"),
        ("sip", "aliases", "gate.example.com:sip"),
        ("websocket", "origins", "www.example.com"),
        ("websocket", "origins", "https://a.test, b.test"),
    ],
)
def test_what_could_never_match_is_an_error(section: str, option: str, value: str):
    error = refused(f"[{section}]\n{option} = {value}\n")
    assert (error.section, error.option) == (section, option)


def test_addresses_of_ours_are_taken_in_every_spelling():
    text = "[sip]\nadvertise = [2001:DB8::1], Gate.example.com\naliases = old.example.com, [2001:db8::2]:443, 192.0.2.7"
    sip = read(text).sip
    assert sip.advertise == ("2001:db8::1", "gate.example.com")
    assert sip.aliases == ("old.example.com", "[2001:db8::2]:443", "192.0.2.7")


@pytest.mark.parametrize(
    ("text", "network", "port"),
    [
        ("[2001:db8::/32]:5060", "2001:db8::/32", 5060),
        ("[2001:db8::/32]", "2001:db8::/32", None),
        ("2001:db8::/32", "2001:db8::/32", None),
        ("10.0.0.0/8:5060", "10.0.0.0/8", 5060),
        ("10.0.0.0/8", "10.0.0.0/8", None),
    ],
)
def test_direct_targets_have_a_port_or_not(text: str, network: str, port: int | None):
    assert read(f"[sip]\ndirect_targets = {text}\n").sip.direct_targets == ((ipaddress.ip_network(network), port),)


@pytest.mark.parametrize(
    "domain", ["sip:example.com", "exam ple.com", "192.0.2.7:5060", "example.com/x", "*.example.com"]
)
def test_a_backend_is_named_by_a_domain(domain: str):
    error = refused(f"[backend {domain}]\ntarget = sip:192.0.2.9\n")
    assert error.section == f"backend {domain}"


@pytest.mark.parametrize("domain", ["*", "example.com", "192.0.2.7", "2001:db8::7", "pbx", "ex_ample.test"])
def test_any_host_of_sip_addresses_names_a_backend(domain: str):
    assert list(read(f"[backend {domain}]\ntarget = sip:192.0.2.9\n").backends) == [domain]
