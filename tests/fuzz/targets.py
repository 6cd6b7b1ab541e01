"""All targets by their names."""

from __future__ import annotations

from tests.fuzz import discovery, dns, dtls, edge, sip, state, turn, web, websocket, workers
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (websocket, web, sip, edge, turn, state, dns, dtls, discovery, workers)
    for target in module.TARGETS
}
