"""The location service of the embedded registrar: which bindings an AOR or a GRUU means now (rules G1, G6). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from wsgate.bindings import Binding
from wsgate.directory import Directory
from wsgate.sip.gruu import TemporaryGruus, fingerprint, is_named
from wsgate.sip.headers import Uri


class Location(NamedTuple):
    """Where a request for a user goes: an entry for each instance, best first, or the answer when there is none.

    An entry holds the flows of its instance, the newest first; the others are for when that one fails (RFC 5626 §7).
    """

    instances: tuple[tuple[Binding, ...], ...]
    status: int = 0
    reason: str = ""

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The first choice of each instance."""
        return tuple(flows[0] for flows in self.instances)


class LocationService:
    """Reads the bindings of the directory. `is_user` tells whether an AOR belongs to somebody in the user file."""

    def __init__(
        self, directory: Directory, is_user: Callable[[bytes], bool], temporary_gruus: TemporaryGruus | None
    ) -> None:
        self._directory = directory
        self._is_user = is_user
        self._temporary_gruus = temporary_gruus

    def lookup(self, uri: Uri, now: float) -> Location:
        """The live bindings of an AOR, or of the one instance that a GRUU names (G6, RFC 5627 §5.4).

        Without one: 480 for a user that we know (RFC 3261 §21.4.18), else 404, also for a GRUU that is no more.
        """
        aor, known = self._meant(uri)
        instances: dict[bytes, dict[int, Binding]] = {}
        for binding in sorted(known, key=lambda binding: binding.registered_at):
            if self._is_live(binding, now):
                client = b"i" + binding.instance if binding.instance else b"c" + binding.contact
                flows = instances.setdefault(client, {})
                flows.pop(binding.reg_id, None)
                flows[binding.reg_id] = binding
        if instances:
            newest_first = [tuple(reversed(flows.values())) for flows in instances.values()]
            newest_first.sort(key=lambda flows: (-flows[0].q, -flows[0].registered_at))
            return Location(tuple(newest_first))
        if known or (aor and self._is_user(aor)):
            return Location((), 480, "Temporarily Unavailable")
        return Location((), 404, "Not Found")

    def contact_on(self, uri: Uri, flow: bytes, now: float) -> bytes | None:
        """The Contact that the instance behind a GRUU registered on this flow; None where there is none.

        A request that finds its way by a Route still names the GRUU, which the browser does not take for itself (C2).
        """
        if b"gr" not in uri.parameters:
            return None
        found = [binding for binding in self._meant(uri)[1] if binding.flow == flow and binding.expires_at > now]
        return max(found, key=lambda binding: binding.registered_at).contact if found else None

    def _meant(self, uri: Uri) -> tuple[bytes, Iterable[Binding]]:
        """The AOR, empty where none can be told, and those of its bindings that the URI means."""
        aor = uri.address_of_record
        if b"gr" not in uri.parameters:
            return aor, self._directory.bindings(aor)
        instance = uri.parameters[b"gr"]
        if instance:
            return aor, [one for one in self._directory.bindings(aor) if is_named(one.instance, instance)]
        read = self._temporary_gruus.read(uri.user or b"") if self._temporary_gruus is not None else None
        if read is None or read.aor.rpartition(b"@")[2] != uri.host.encode():
            return b"", ()
        # The Call-ID of one flow is enough: the instance is meant, with all its flows.
        known = self._directory.bindings(read.aor)
        named = {one.instance for one in known if fingerprint(one.instance, one.call_id) == read.fingerprint}
        return b"", [one for one in known if one.instance and one.instance in named]

    def _is_live(self, binding: Binding, now: float) -> bool:
        return binding.expires_at > now and (not binding.flow or self._directory.has_flow(binding.flow))
