"""The servers under measurement, each on one core, with the CPU time and memory of all its processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

from tests.interop.process import Process, free_port
from tests.interop.raw import RawWebSocket

ROOT = Path(__file__).resolve().parents[2]
SERVER_CORE = 0
LOAD_CORE = 1
DOMAIN = "example.test"

WSGATE = """
[wsgate]
user =
group =
log_level = warning
key_file = {directory}/wsgate.key
control_socket = {directory}/wsgate.sock
[listener plain]
bind = 127.0.0.1:{ws}
tls = {tls}
turn = off
[sip]
bind = 127.0.0.1:{sip}
udp_max_bytes = 0
[backend {domain}]
target = sip:127.0.0.1:{backend};transport=udp
transports = udp
contact_mode = path
[limits]
connections_per_address = 100000
upgrades_per_second = 100000
messages_per_second = 100000
[web]
phone = off
"""

KAMAILIO = """
debug=0
log_stderror=yes
fork=yes
children=1
tcp_children=1
alias="{domain}"
listen=udp:127.0.0.1:{sip}
listen=tcp:127.0.0.1:{ws}
tcp_accept_no_cl=yes
tcp_max_connections=4096
tcp_connection_lifetime=3605
dns=off
rev_dns=off
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "path.so"
loadmodule "stun.so"
loadmodule "outbound.so"
loadmodule "xhttp.so"
loadmodule "websocket.so"
modparam("outbound", "force_outbound_flag", 1)
modparam("rr", "enable_full_lr", 1)
event_route[xhttp:request] {{
    if ($hdr(Upgrade) =~ "websocket" && $hdr(Connection) =~ "Upgrade" && $rm =~ "GET") {{
        ws_handle_handshake();
        exit;
    }}
    xhttp_reply("404", "Not Found", "", "");
}}
request_route {{
    if (!mf_process_maxfwd_header("70")) {{ sl_send_reply("483", "Too Many Hops"); exit; }}
    if (is_method("CANCEL")) {{
        if (t_check_trans()) {{ t_relay(); }}
        exit;
    }}
    if (!is_method("ACK")) {{ t_check_trans(); }}
    if (has_totag()) {{
        if (loose_route()) {{ t_relay(); }}
        exit;
    }}
    if (is_method("REGISTER")) {{ setflag(1); add_path(); }} else {{ remove_hf("Route"); }}
    if (is_method("INVITE")) {{ record_route(); }}
    $du = "sip:127.0.0.1:{backend};transport=udp";
    t_relay();
}}
"""


class Server:
    """One server in front of the SIP server at `backend`; browsers connect to `ws`."""

    def __init__(self, directory: Path, backend: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.ws, self.sip = free_port(), free_port()
        self._directory = directory
        self._process = Process(self.command(backend), directory / "log", env={"PYTHONPATH": str(ROOT)})
        self._process.ready(self._upgrades, 30)
        for process in self.processes():
            process.cpu_affinity([SERVER_CORE])

    def _upgrades(self) -> bool:
        """True once a WebSocket opens: all its processes are there."""
        try:
            RawWebSocket(("127.0.0.1", self.ws), seconds=1).close()
        except OSError:
            return False
        return True

    def command(self, backend: int) -> list[str | Path]:
        """What starts it."""
        raise NotImplementedError

    def write(self, name: str, text: str, backend: int, **more: str) -> Path:
        """A configuration file in its directory, with the ports filled in."""
        path = self._directory / name
        values = {"directory": self._directory, "ws": self.ws, "sip": self.sip, "backend": backend, "domain": DOMAIN}
        path.write_text(text.format(**values, **more))
        return path

    def processes(self) -> list[psutil.Process]:
        """It and its children."""
        first = psutil.Process(self._process.popen.pid)
        return [first, *first.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """User and system time of all its processes."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(one.user + one.system for one in times)

    def pss_kib(self) -> float:
        """Proportional set size of all its processes."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 1024

    def stop(self) -> None:
        """End it."""
        self._process.stop()


class Wsgate(Server):
    """wsgate as it is installed here."""

    name = "wsgate"

    def command(self, backend: int) -> list[str | Path]:
        """One worker."""
        return [sys.executable, "-m", "wsgate", "-c", self.write("wsgate.ini", WSGATE, backend, tls="off")]


class Kamailio(Server):
    """Kamailio as the same edge proxy: one child for UDP, one for TCP, the fast allocators."""

    name = "kamailio"

    def command(self, backend: int) -> list[str | Path]:
        """As DESIGN's figures want it."""
        config = self.write("kamailio.cfg", "#!KAMAILIO\n" + KAMAILIO, backend)
        memory = ["-m", "256", "-M", "64", "-x", "fm", "-X", "fm"]
        return ["kamailio", "-DD", "-E", "-f", config, *memory, "-Y", self._directory, "-w", self._directory]


def stay_on_the_load_core() -> None:
    """This process makes the load: it leaves the core of the servers alone."""
    os.sched_setaffinity(0, {LOAD_CORE})
