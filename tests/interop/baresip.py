"""baresip as a desk phone: registers with a gateway, takes and makes calls, driven over its control port."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.interop.process import PATIENCE_SECONDS, Process, accepts, free_port, wait_for
from tests.interop.registration import DOMAIN, PASSWORD

MODULES = Path("/usr/lib/baresip/modules")
CONFIG = """
poll_method epoll
sip_listen 127.0.0.1:{sip}
audio_player aubridge,nil
audio_source aubridge,nil
audio_alert aubridge,nil
ctrl_tcp_listen 127.0.0.1:{control}
net_interface 127.0.0.1
module_path {modules}
module uuid.so
module g711.so
module aubridge.so
module_app account.so
module_app menu.so
module_app ctrl_tcp.so

"""
ACCOUNT = (
    "<sip:{user}@{domain};transport={transport}>;auth_pass={password};regint=600;answermode={mode};"
    'outbound="sip:{gateway};transport={transport}"{more}\n'
)
Event = dict[str, Any]


class Baresip:
    """One baresip with one account of the embedded registrar at `gateway`. `more` are parameters of the account."""

    def __init__(
        self,
        directory: Path,
        gateway: tuple[str, int],
        user: str = "bob",
        *,
        transport: str = "udp",
        answers: bool = True,
        more: str = "",
    ) -> None:
        directory.mkdir(parents=True)
        # baresip takes SIP over TLS on the port behind that of SIP.
        self.sip, self._control_port = free_port(count=2), free_port()
        options = {"sip": self.sip, "control": self._control_port, "modules": MODULES}
        (directory / "config").write_text(CONFIG.format(**options))
        account = {"user": user, "domain": DOMAIN, "transport": transport, "password": PASSWORD}
        account |= {"gateway": f"{gateway[0]}:{gateway[1]}", "mode": "auto" if answers else "manual", "more": more}
        (directory / "accounts").write_text(ACCOUNT.format(**account))
        (directory / "contacts").write_text("")
        self._process = Process(["baresip", "-4", "-v", "-s", "-f", directory], directory / "baresip.log")
        self._process.ready(lambda: accepts("127.0.0.1", self._control_port))
        self._control = socket.create_connection(("127.0.0.1", self._control_port), 10)
        self._events: list[Event] = []
        self._seen = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def log(self) -> str:
        """What it wrote, its SIP messages included."""
        return self._process.output

    def do(self, command: str, parameters: str = "") -> None:
        """One command of its menu: dial, hangup, accept."""
        data = json.dumps({"command": command, "params": parameters, "token": command}).encode()
        self._control.sendall(b"%d:%b," % (len(data), data))

    def wait(
        self, kind: str, seconds: float = PATIENCE_SECONDS, accept: Callable[[Event], bool] = lambda _: True
    ) -> Event:
        """The next event of this type behind the last one returned."""

        def find() -> int:
            for index in range(self._seen, len(self._events)):
                if self._events[index].get("type") == kind and accept(self._events[index]):
                    return index + 1
            return 0

        try:
            self._seen = wait_for(find, f"{kind} of baresip", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._events}\n{self.log[-6000:]}") from None
        return self._events[self._seen - 1]

    def stop(self) -> None:
        """End it."""
        self._process.stop(5)
        self._control.close()
        self._thread.join(5)

    def _read(self) -> None:
        """Netstrings, each a JSON object; ends with the connection."""
        buffer = b""
        self._control.settimeout(None)
        while True:
            try:
                data = self._control.recv(65536)
            except OSError:
                return
            if not data:
                return
            buffer += data
            while (head := buffer.partition(b":"))[1]:
                size = int(head[0])
                if len(head[2]) <= size:
                    break
                event = json.loads(head[2][:size])
                buffer = head[2][size + 1 :]
                if event.get("event"):
                    self._events.append({**event, "at": time.monotonic()})
