"""Which browser connections are open, at whatever worker, and since when others are gone. Pure."""

from __future__ import annotations


class KnownFlows:
    """The flows of the directory: those open `here`, and of the other workers' those that something is known by.

    A flow that was closed stays known until it is forgotten. Ids are never reused (T1).
    """

    def __init__(self) -> None:
        self.here: set[bytes] = set()
        self._elsewhere: dict[bytes, int] = {}
        self._gone: dict[bytes, float] = {}

    def is_open(self, flow: bytes) -> bool:
        """True while the connection is open, at whatever worker."""
        return flow in self.here or flow in self._elsewhere

    def worker_of(self, flow: bytes) -> int | None:
        """The other worker that has this open flow, as far as it told us."""
        return self._elsewhere.get(flow)

    def gone_since(self, flow: bytes) -> float | None:
        """When a flow was closed that something is known by; None while it is open or was never known."""
        return self._gone.get(flow)

    def close(self, flow: bytes) -> None:
        """The connection is open nowhere."""
        self.here.discard(flow)
        self._elsewhere.pop(flow, None)

    def note_gone(self, flow: bytes, at: float) -> None:
        """It was closed at `at`; the first word counts."""
        self._gone.setdefault(flow, at)

    def note_use(self, flow: bytes, now: float) -> None:
        """Something becomes known by this flow; the 2xx may have come when its browser had already left."""
        if not self.is_open(flow):
            self._gone.setdefault(flow, now)

    def learn(self, flow: bytes, worker: int) -> None:
        """Another worker has this open flow."""
        if flow not in self.here:
            self._elsewhere[flow] = worker
            self._gone.pop(flow, None)

    def of_worker(self, worker: int) -> set[bytes]:
        """The open flows of another worker."""
        return {flow for flow, of in self._elsewhere.items() if of == worker}

    def forget(self, flow: bytes) -> None:
        """Nothing is known by this flow any more; an open one of ours stays open."""
        self._gone.pop(flow, None)
        self._elsewhere.pop(flow, None)
