"""Kamailio as a company's SIP server: registrar and proxy with digest, Path and outbound, over UDP, TCP and WS."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.certificates import Issued
from tests.interop.process import Process, accepts, free_port, udp_is_bound

PASSWORD = "secret"
"""What every user of the test server has as a password."""

# One reader per UDP socket: two would forward an ACK and the request behind it in either order.
CONFIG = """
debug=2
log_stderror=yes
fork=yes
children=1
tcp_children=2
pv_buffer_size=65536
alias="{domain}"
{listen}
tcp_accept_no_cl=yes
tcp_rd_buf_size=1048576
tcp_conn_wq_max=1048576
tcp_wq_max=16777216
tcp_connection_lifetime=3605
dns=off
rev_dns=off
{tls}
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "xlog.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "path.so"
loadmodule "stun.so"
loadmodule "outbound.so"
loadmodule "auth.so"
loadmodule "xhttp.so"
loadmodule "websocket.so"
loadmodule "kex.so"
modparam("usrloc", "db_mode", 0)
modparam("registrar", "use_path", {path})
modparam("registrar", "path_mode", 0)
modparam("registrar", "path_use_received", 1)
modparam("registrar", "outbound_mode", {outbound})
modparam("registrar", "gruu_enabled", {gruu})
modparam("registrar", "min_expires", 5)
modparam("registrar", "max_contacts", 10)
modparam("outbound", "force_outbound_flag", 1)
modparam("rr", "enable_full_lr", 1)
modparam("auth", "nonce_expire", 300)
modparam("tm", "fr_timer", 30000)
modparam("tm", "fr_inv_timer", 120000)

event_route[xhttp:request] {{
    if ($hdr(Upgrade) =~ "websocket" && $hdr(Connection) =~ "Upgrade" && $rm =~ "GET") {{
        ws_handle_handshake();
        exit;
    }}
    xhttp_reply("404", "Not Found", "", "");
}}

request_route {{
    xlog("L_NOTICE", "GOT $rm from $pr:$si:$sp for $ru route $hdr(Route)\\n");
    if (!mf_process_maxfwd_header("10")) {{ sl_send_reply("483", "Too Many Hops"); exit; }}
    if (is_method("CANCEL")) {{
        if (t_check_trans()) {{ t_relay(); }}
        exit;
    }}
    if (!is_method("ACK")) {{ t_check_trans(); }}
    if (has_totag()) {{
        if (loose_route()) {{
            t_relay();
            exit;
        }}
        if (is_method("ACK")) {{
            if (t_check_trans()) {{ t_relay(); }}
            exit;
        }}
        if (!is_myself("$ru")) {{ t_relay(); exit; }}
        sl_send_reply("404", "Not Here");
        exit;
    }}
    if (is_method("REGISTER")) {{
        if (!pv_www_authenticate("$td", "{password}", "0")) {{
            auth_challenge("$td", "1");
            exit;
        }}
        consume_credentials();
        save("location", "{save_flags}");
        exit;
    }}
    if (is_method("OPTIONS") && is_myself("$ru")) {{ sl_send_reply("200", "OK"); exit; }}
    if (is_method("INVITE|MESSAGE|SUBSCRIBE|REFER") && {call_auth}) {{
        if (!pv_proxy_authenticate("$fd", "{password}", "0")) {{
            auth_challenge("$fd", "1");
            exit;
        }}
        consume_credentials();
    }}
    remove_hf("Route");
    if (is_method("INVITE|SUBSCRIBE|REFER") && {record_route}) {{ record_route(); }}
    if (!lookup("location")) {{ sl_send_reply("404", "Not Found"); exit; }}
    t_relay();
}}
"""


TLS = """
enable_tls=yes
listen=tls:{host}:{port}
loadmodule "tls.so"
modparam("tls", "certificate", "{certificate.certfile}")
modparam("tls", "private_key", "{certificate.keyfile}")
modparam("tls", "tls_method", "TLSv1.2+")
modparam("tls", "verify_certificate", 0)
modparam("tls", "require_certificate", 0)
"""


class Kamailio:
    """One server on ports of its own; the directory holds its configuration and log.

    `udp`, `tcp` and `ws` are the same port, as Kamailio has one TCP listener for SIP and WebSocket. `record_route`
    says whether it stays in the dialog, `path` whether it knows Path,
    `outbound` whether RFC 5626 is answered with Require: outbound, `gruu` whether
    a REGISTER returns GRUUs, `call_auth` whether a call is challenged too. With `one_contact` a new binding takes the
    place of all others of its user; without, Contacts are compared as RFC 3261 §10.3 wants it.
    With a `certificate` it takes SIP over TLS and WSS on `tls_port`. It names itself
    `advertise` (host:port) where that is given; phones then use UDP at `desk_host` and the same port.
    """

    def __init__(
        self,
        directory: Path,
        *,
        domain: str = "example.test",
        host: str = "127.0.0.1",
        transports: tuple[str, ...] = ("udp", "tcp"),
        record_route: bool = True,
        outbound: bool = True,
        path: bool = True,
        gruu: bool = True,
        call_auth: bool = False,
        one_contact: bool = True,
        advertise: str = "",
        desk_host: str = "",
        port: int | None = None,
        certificate: Issued | None = None,
    ) -> None:
        self.host, self.port, self.domain = host, port or free_port(host), domain
        self.tls_port = free_port(host)
        self._transports = transports
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._config = directory / "kamailio.cfg"
        seen = f" advertise {advertise}" if advertise else ""
        listen = [f"listen={transport}:{host}:{self.port}{seen}" for transport in transports]
        listen += [f"listen=udp:{desk_host}:{self.port}"] if desk_host else []
        flag = {True: "1==1", False: "1==0"}
        self._config.write_text(
            "#!KAMAILIO\n"
            + CONFIG.format(
                domain=domain,
                listen="\n".join(listen),
                tls=TLS.format(host=host, port=self.tls_port, certificate=certificate) if certificate else "",
                outbound=1 if outbound and path else 0,
                path=1 if path else 0,
                gruu=1 if gruu else 0,
                record_route=flag[record_route],
                call_auth=flag[call_auth],
                save_flags="0x04" if one_contact else "0x00",
                password=PASSWORD,
            )
        )
        self._process = self._start()

    def _start(self) -> Process:
        command = ["kamailio", "-DD", "-E", "-f", self._config, "-m", "32", "-M", "8", "-Y", self._directory, "-w"]
        process = Process([*command, self._directory, "-x", "fm", "-X", "fm"], self._directory / "kamailio.log")
        if "tcp" in self._transports:
            process.ready(lambda: accepts(self.host, self.port))
        else:
            process.ready(lambda: "listening" in process.output.lower() or udp_is_bound(self.host, self.port))
        return process

    @property
    def log(self) -> str:
        """What the server wrote: one GOT line per request."""
        return self._process.output

    def stop(self) -> None:
        """End the server and its children."""
        self._process.stop()

    def pause(self) -> None:
        """Silence: its sockets stay open and take what comes, nothing is answered."""
        os.killpg(self._process.popen.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was."""
        os.killpg(self._process.popen.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Start it again on the same ports; its bindings are gone."""
        self._process = self._start()
