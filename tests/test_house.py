"""The order of the house: a file imports only what stands above it, and what is pure stays so."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "wsgate"

FLOORS = {
    "words": "errors addr settings log metrics meanings handover",
    "codecs": (
        "keys certificate ws/frames ws/handshake http/head http/body http/passing"
        " sip/headers sip/mending sip/header_names sip/header_lines sip/message sip/edit sip/framing sip/outline"
        " sip/sdp turn/values turn/stun"
    ),
    "machines": (
        "guard credentials expiries call_peers known_flows registrations bindings directory sharing bearer identity"
        " ws/connection sip/flow sip/names sip/rewriting sip/digest sip/transaction_tables sip/transaction_messages"
        " sip/transaction_effects sip/transaction_timers sip/transaction sip/targets sip/siblings"
        " sip/compose sip/location sip/dead_targets"
        " sip/dialogs sip/gruu sip/location_service sip/contacts"
        " sip/registration sip/accounts sip/registrar sip/heirs sip/settings sip/decisions sip/proxy"
        " sip/tracking sip/contexts sip/call_lines sip/calls sip/connections sip/probes sip/attempts sip/best_response"
        " sip/subscriptions sip/forwarding sip/screening sip/services sip/identities sip/orphans sip/journal"
        " sip/continuity sip/edge"
        " turn/tokens turn/auth turn/settings turn/peers turn/effects turn/allocation turn/ports turn/framing"
        " turn/answers turn/bandwidth turn/connections turn/mobility turn/discovery turn/allocator turn/permissions"
        " turn/server turn/client turn/uri turn/alternates turn/faults"
    ),
    "net": (
        "net/clock net/tls net/readers net/stream net/datagram net/forwarded net/request_head"
        " net/tunnel net/fallback net/upgrade net/port net/listener"
        " net/nameserver net/resolver net/keep_alive net/backend_codec net/backend_stream net/backend"
        " net/metering net/turn_side net/turn_listening net/turn_connections net/packet_loop net/relay_sockets"
        " net/relay net/turn_stream net/dtls_records net/dtls net/mesh"
    ),
    "assembly": (
        "config cross_checks ini crew web statefile signalling media turn_offer store named_files parts gateway"
    ),
    "process": (
        "userfile control daemon plan offer sockets databases worker_process supervisor worker"
        " turn_link turn_trial turn_credentials turn_commands cli __main__"
    ),
}
ORDER = [name for floor in FLOORS.values() for name in floor.split()]
PURE = [name for floor in ("codecs", "machines") for name in FLOORS[floor].split()]

RULES = {
    letter: [f"{letter}{number}" for number in range(1, last + 1)]
    for letter, last in zip("HCRIBDWVTNGSALPEQ", (7, 7, 7, 7, 6, 5, 2, 3, 3, 6, 6, 5, 5, 4, 6, 4, 2), strict=True)
}
"""The rules of the specification by letter: H to G for SIP over WebSocket, S to Q for STUN and TURN (C1 is in both)."""

IMPURE = {"gevent", "geventwebsocket", "socket", "ssl", "time", "os", "random", "threading", "asyncio", "select"}
"""What must not be imported below net/; random bytes, time and sockets come in as arguments."""


def modules() -> Iterator[str]:
    """Every module of the package as `sip/proxy`, packages themselves left out."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "__init__.py":
            yield str(path.relative_to(PACKAGE).with_suffix(""))


def imports(module: str) -> Iterator[str]:
    """The dotted names that a module imports anywhere in it, also within functions and for types alone."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> Iterator[str]:
    """The modules of the house that a module imports, as they stand in ORDER."""
    for name in imports(module):
        parts = name.split(".")
        if parts[0] == "wsgate" and len(parts) > 1:
            candidates = ("/".join(parts[1:end]) for end in range(len(parts), 1, -1))
            found = next((candidate for candidate in candidates if (PACKAGE / f"{candidate}.py").exists()), None)
            if found is not None:
                yield found


def test_every_module_has_its_place():
    assert set(modules()) - set(ORDER) == set(), "a module is missing in the order of the house"
    assert set(ORDER) - set(modules()) == set(), "the order of the house names what is gone"


def test_the_table_of_the_architecture_is_the_order_of_the_house():
    rows = re.findall(r"^\| \d (\w+) \| (.*) \|$", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.M)
    told = {floor: re.findall(r"`([^`]+)`", re.sub(r"\([^)]*\)", "", row)) for floor, row in rows}
    assert told == {floor: names.replace("net/", "").split() for floor, names in FLOORS.items()}


@pytest.mark.parametrize("module", list(modules()))
def test_imports_point_to_what_stands_above(module: str):
    above = set(ORDER[: ORDER.index(module)])
    assert set(own_imports(module)) - above == set(), f"{module} imports what stands below it"


def test_sip_and_turn_never_import_each_other():
    for module in modules():
        for other in own_imports(module):
            assert {module.partition("/")[0], other.partition("/")[0]} != {"sip", "turn"}, (module, other)


@pytest.mark.parametrize("module", [name for name in PURE if (PACKAGE / f"{name}.py").exists()])
def test_machines_import_nothing_of_the_world(module: str):
    assert {name.partition(".")[0] for name in imports(module)} & IMPURE == set()


def words(directory: Path) -> set[str]:
    """Every word of a letter and a digit in the Python files of a directory, this one left out."""
    files = (path for path in directory.rglob("*.py") if path != Path(__file__).resolve())
    return {word for path in files for word in re.findall(r"\b[A-Z]\d\b", path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("directory", [PACKAGE, ROOT / "tests"], ids=["code", "tests"])
def test_every_rule_is_named_where_it_is_obeyed_and_where_it_is_shown(directory: Path):
    assert {rule for rules in RULES.values() for rule in rules} - words(directory) == set()


def test_nothing_is_monkey_patched():
    for module in modules():
        assert not any("monkey" in name for name in imports(module)), module


def test_the_supervisor_never_sees_gevent():
    """What forks workers must not hold a loop that they would inherit."""
    code = (
        "import sys, wsgate.cli\n"
        "found = sorted(name for name in sys.modules if name.partition('.')[0] in ('gevent', 'greenlet'))\n"
        "print(found)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
