"""Which answer of a forked request goes upstream (RFC 3261 §16.7 steps 6 and 7; rule G6). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from wsgate.sip.contexts import Branch, Outcome
from wsgate.sip.edit import Edit
from wsgate.sip.tracking import CHALLENGES

CHANGES_THE_REQUEST = (401, 407, 415, 420, 484, 421, 422, 488)
"""What lets the caller send the request again in another form: the first five are those of RFC 3261 §16.7, the others
name an extension, a session timer (RFC 4028 §6) or media that would be taken."""
SPEAKS_OF_THE_USER = (486,)
"""What somebody at the far end said, or their device knows of them."""
TELLS_LEAST = (480, 404, 410, 430, 482, 483, 481, 487, 408)
"""What speaks of one device or of the way to it, the worst last: a 408 says that nothing is known."""

_ORDER_OF_4XX = {status: number for number, status in enumerate((*CHANGES_THE_REQUEST, *SPEAKS_OF_THE_USER))}
_ORDER_OF_4XX |= {status: 1000 + number for number, status in enumerate(TELLS_LEAST)}
_MADE_HERE = (Outcome.TIMEOUT, Outcome.UNREACHABLE)


def best(branches: Sequence[Branch], *, is_invite: bool) -> Branch | None:
    """The branch whose answer goes upstream: a 6xx, else one of the lowest class; None where one of ours is better.

    A branch that nobody answered stands for a 408 or 480 of ours (§16.8, rule D5): it never wins against a 4xx that
    came, but against a 5xx. Of a request that is not INVITE no 408 goes upstream (RFC 4320 §4.2), so what came does.
    """
    answered = [branch for branch in branches if branch.response is not None]
    found = min(answered, key=_rank, default=None)
    if found is not None and is_invite and _rank(found)[0] == 5 and any(map(_is_4xx_of_ours, branches)):
        return None
    return found


def merge_challenges(edit: Edit, chosen: Branch, branches: Sequence[Branch]) -> None:
    """A forked request that several refused with 401 or 407 shows all their challenges (RFC 3261 §16.7 step 7)."""
    for branch in branches:
        if branch is chosen or branch.response is None or branch.response.status not in CHALLENGES:
            continue
        for name in (b"WWW-Authenticate", b"Proxy-Authenticate"):
            for value in branch.response.lines(name.lower()):
                edit.append(name, value)


def _rank(branch: Branch) -> tuple[int, int]:
    """Smaller is better: the class, 6xx first, and the order within it."""
    status = branch.response.status if branch.response is not None else 999
    if status >= 600:
        return 0, status
    # A 503 does not go upstream as it is; another 5xx says more.
    return status // 100, _ORDER_OF_4XX.get(status, 9999 if status == 503 else status)


def _is_4xx_of_ours(branch: Branch) -> bool:
    """True for a branch that ended in a 408 or, towards a client of ours, in a 480."""
    if branch.response is not None or branch.outcome not in _MADE_HERE:
        return False
    return branch.outcome is Outcome.TIMEOUT or branch.flow is not None or branch.located is not None
