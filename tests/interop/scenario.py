"""sipp scenarios written as steps: what a desk phone that speaks WebRTC's SDP does in one call.

`calling` and `answering` give the XML of a whole scenario; the steps in between are Receive,
Notified, Request and Pause.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FINGERPRINT = ":".join(["AB"] * 32)
MAX_NOTIFIES = 8
"""How many NOTIFYs a transfer may bring."""
ANSWER_RETRANSMISSION_MILLISECONDS = 4000
"""Nothing is lost here, and a slow browser acknowledges a repeated answer twice, which sipp takes for unexpected."""


def sdp(version: int, setup: str, direction: str = "sendrecv") -> str:
    """An offer (`setup` actpass) or answer (active) that a browser takes; nothing is ever sent to it."""
    return f"""
      v=0
      o=- 7 {version} IN IP4 [local_ip]
      s=-
      t=0 0
      a=group:BUNDLE 0
      m=audio 6000 UDP/TLS/RTP/SAVPF 0
      c=IN IP4 [local_ip]
      a=mid:0
      a=ice-ufrag:abcd
      a=ice-pwd:0123456789abcdef01234567
      a=fingerprint:sha-256 {FINGERPRINT}
      a=setup:{setup}
      a=rtcp-mux
      a={direction}
      a=rtpmap:0 PCMU/8000
"""


class Body(NamedTuple):
    """A body with its Content-Type."""

    type: str
    text: str


class Receive(NamedTuple):
    """A request of the browser in the call, answered with `status`; re-INVITEs with an SDP of `direction`."""

    method: str
    status: str = "200 OK"
    direction: str = ""


class Notified(NamedTuple):
    """NOTIFYs of a transfer, each answered with 200, until one tells a final status (RFC 3515 §2.4.5).

    How many come before it is the browser's affair, and depends on how fast the third party answers.
    """


class Request(NamedTuple):
    """A request of ours in the call, answered with `status`; a re-INVITE offers `direction` and is acknowledged."""

    method: str
    status: int = 200
    direction: str = ""
    body: Body | None = None
    headers: tuple[str, ...] = ()


class Pause(NamedTuple):
    """Nothing happens for a while."""

    milliseconds: int


Step = Receive | Notified | Request | Pause


class _Side(NamedTuple):
    """How a phone writes the headers of its own requests: the caller, or the called party that took them down."""

    from_: str
    to: str


CALLER = _Side("<sip:[user]@[domain]>;tag=[pid]phone[call_number]", "<sip:[service]@[domain]>[peer_tag_param]")
CALLED = _Side("[$local]", "[$remote]")


def calling(*steps: Step, directory: Path, name: str) -> Path:
    """A phone that calls, is answered, does `steps`; the last of them should end the call. Returns the file."""
    invite = _send(
        "INVITE sip:[service]@[domain] SIP/2.0",
        *_own("<sip:[user]@[domain]>;tag=[pid]phone[call_number]", "<sip:[service]@[domain]>", "1 INVITE"),
        body=Body("application/sdp", sdp(1, "actpass")),
    )
    parts = [invite, '<recv response="100" optional="true"/>', '<recv response="180" optional="true"/>']
    parts += ['<recv response="200" rrs="true" timeout="20000"/>', _acknowledge(CALLER, 1)]
    return _write(directory, f"uac_{name}", [*parts, *_steps(steps, CALLER, 2)])


def answering(*steps: Step, directory: Path, name: str) -> Path:
    """A phone that rings, answers, does `steps`; the last of them should end the call. Returns the file."""
    take_down = """<recv request="INVITE" rrs="true"><action>
    <ereg regexp=".*" search_in="hdr" header="From:" assign_to="remote"/>
    <ereg regexp=".*" search_in="hdr" header="To:" assign_to="called"/>
    <assignstr assign_to="local" value="[$called];tag=[pid]answer[call_number]"/>
  </action></recv>"""
    tag = ";tag=[pid]answer[call_number]"
    parts = [take_down, _reply("180 Ringing", tag), '<pause milliseconds="100"/>']
    parts += [_reply("200 OK", tag, Body("application/sdp", sdp(1, "active"))), '<recv request="ACK"/>']
    return _write(directory, f"uas_{name}", [*parts, *_steps(steps, CALLED, 1)])


def _write(directory: Path, name: str, parts: Sequence[str]) -> Path:
    # sipp fails on a variable that is written and never read.
    known = '<Reference variables="remote,local,called"/>' if name.startswith("uas_") else ""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.xml"
    text = '<?xml version="1.0" encoding="utf-8" ?>\n<scenario name="{}">\n{}\n{}\n</scenario>\n'
    path.write_text(text.format(name, "\n".join(parts), known))
    return path


def _steps(steps: Sequence[Step], side: _Side, cseq: int) -> list[str]:
    parts: list[str] = []
    for number, step in enumerate(steps, 2):
        if isinstance(step, Pause):
            parts.append(f'<pause milliseconds="{step.milliseconds}"/>')
        elif isinstance(step, Notified):
            # Written out instead of a loop: sipp takes what comes while it jumps for unexpected.
            final = f'<ereg regexp="SIP/2.0 [2-6]" search_in="body" assign_to="final{number}"/>'
            one = f'<recv request="NOTIFY" timeout="20000"><action>{final}</action></recv>'
            answer = _reply("200 OK", "").replace("<send", f'<send next="{number}" test="final{number}"', 1)
            parts += [one, answer] * MAX_NOTIFIES + [f'<label id="{number}"/>']
        elif isinstance(step, Receive):
            body = Body("application/sdp", sdp(number, "active", step.direction)) if step.direction else None
            parts += [f'<recv request="{step.method}" timeout="20000"/>', _reply(step.status, "", body)]
            parts += ['<recv request="ACK"/>'] if step.method == "INVITE" else []
        else:
            body = Body("application/sdp", sdp(number, "actpass", step.direction)) if step.direction else step.body
            own = _own(side.from_, side.to, f"{cseq} {step.method}")
            parts.append(_send(f"{step.method} [next_url] SIP/2.0", *own, *step.headers, "[routes]", body=body))
            parts += ['<recv response="100" optional="true"/>'] if step.method == "INVITE" else []
            parts.append(f'<recv response="{step.status}" timeout="20000"/>')
            parts += [_acknowledge(side, cseq)] if step.method == "INVITE" else []
            cseq += 1
    return parts


def _own(from_: str, to: str, cseq: str) -> tuple[str, ...]:
    return (
        "Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=[branch]",
        "Max-Forwards: 70",
        f"From: {from_}",
        f"To: {to}",
        "Call-ID: [call_id]",
        f"CSeq: {cseq}",
        "Contact: <sip:[user]@[local_ip]:[local_port]>",
    )


def _acknowledge(side: _Side, cseq: int) -> str:
    return _send(
        "ACK [next_url] SIP/2.0", *_own(side.from_, side.to, f"{cseq} ACK"), "[routes]", retransmission_milliseconds=0
    )


def _reply(status: str, tag: str, body: Body | None = None) -> str:
    headers = ["[last_Via:]", "[last_Record-Route:]", "[last_From:]", f"[last_To:]{tag}", "[last_Call-ID:]"]
    headers += ["[last_CSeq:]", "Contact: <sip:[user]@[local_ip]:[local_port]>"]
    milliseconds = ANSWER_RETRANSMISSION_MILLISECONDS if body else 0
    return _send(f"SIP/2.0 {status}", *headers, body=body, retransmission_milliseconds=milliseconds)


def _send(first: str, *headers: str, body: Body | None = None, retransmission_milliseconds: int = 500) -> str:
    lines = [first, *headers]
    lines += [f"Content-Type: {body.type}", "Content-Length: [len]"] if body else ["Content-Length: 0"]
    text = "\n".join(["", *lines, "", *([body.text.strip()] if body else [])])
    attribute = f' retrans="{retransmission_milliseconds}"' if retransmission_milliseconds else ""
    return f"<send{attribute}>\n<![CDATA[\n{text}\n\n]]></send>"
