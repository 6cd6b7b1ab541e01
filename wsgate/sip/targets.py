"""Where a SIP URI leads: NAPTR, SRV and address selection (RFC 3263), without a socket."""

from __future__ import annotations

import dataclasses
import enum

from wsgate.addr import Transport
from wsgate.settings import TEXT, choice, listed, option, seconds


class ContactMode(enum.Enum):
    """How a registrar learns the way to a browser (rule R5)."""

    PATH = "path"
    CONTACT = "contact"
    AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class BackendSettings:
    """[backend DOMAIN]"""

    target: str = option("", TEXT)
    transports: tuple[Transport, ...] = option(tuple(Transport), listed(choice(Transport)))
    ws_path: str = option("/", TEXT)
    contact_mode: ContactMode = option(ContactMode.AUTO, choice(ContactMode), later="rewriting Contact")
    probe_interval: float = option(10.0, seconds(1, 3600), later="OPTIONS probes")
    ca_file: str = option("", TEXT)
    server_name: str = option("", TEXT)
    client_certificate: str = option("", TEXT, later="client certificates towards backends")
    client_private_key: str = option("", TEXT, later="client certificates towards backends")
