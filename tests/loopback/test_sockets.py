"""The supervisor's sockets and memory files: all or none, families, the same port for SIP over UDP and TCP."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.interop.process import free_port
from wsgate.addr import Address
from wsgate.errors import StartError
from wsgate.handover import INI, Endpoint, FileReference, Files
from wsgate.plan import Plan, own_names, read
from wsgate.sockets import (
    OWN_ADDRESSES_MAX,
    addresses,
    close_all,
    close_files,
    close_streams,
    inbox,
    open_sockets,
    read_files,
    reopen,
)


def plan(
    *endpoints: Endpoint, path: str = "/etc/wsgate.ini", files: tuple[FileReference, ...] = (), **changes: Any
) -> Plan:
    made = Plan(
        path=path,
        user=None,
        group=None,
        pidfile="",
        log_level="info",
        log_target="stderr",
        drain_timeout=1.0,
        endpoints=endpoints,
        places=tuple(f"[{endpoint.name}] bind" for endpoint in endpoints),
        files=files,
        states=(),
        databases=(),
        notices=(),
    )
    return made._replace(**changes)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_ipv4_and_ipv6_share_a_port():
    port = free_port()
    asked = plan(Endpoint("listener", "a", Address("0.0.0.0", port)), Endpoint("listener", "a", Address("::", port)))
    opened = open_sockets(asked)
    assert [sock.family for sock in opened.values()] == [socket.AF_INET, socket.AF_INET6]
    assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in opened.values())
    close_all(opened)


def test_sip_gets_the_same_free_port_for_udp_and_tcp():
    address = Address("127.0.0.1", 0)
    opened = open_sockets(plan(Endpoint("sip-udp", "sip", address), Endpoint("sip-tcp", "sip", address)))
    udp, tcp = opened.values()
    assert udp.type == socket.SOCK_DGRAM
    assert udp.getsockname()[1] == tcp.getsockname()[1] > 0
    close_all(opened)


@pytest.mark.parametrize("kind", ["listener", "turn-udp"])
def test_one_that_fails_closes_all(kind: str):
    before = open_descriptors()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "turn-udp" else socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == "listener":
            taken.listen()
        port = taken.getsockname()[1]
        first = Endpoint("listener", "first", Address("127.0.0.1", 0))
        with pytest.raises(StartError, match=rf"\[second\] bind: cannot open (TCP|UDP) 127\.0\.0\.1:{port}: Address"):
            open_sockets(plan(first, Endpoint(kind, "second", Address("127.0.0.1", port))))
    assert open_descriptors() == before


def test_an_address_that_is_not_ours_is_one_sentence():
    with pytest.raises(StartError, match=r"cannot open TCP 192\.0\.2\.77:80: Cannot assign"):
        open_sockets(plan(Endpoint("listener", "x", Address("192.0.2.77", 80))))


def test_files_are_sealed_copies(tmp_path: Path):
    (tmp_path / "wsgate.ini").write_text("ini")
    secret = tmp_path / "key.pem"
    secret.write_text("secret")
    asked = plan(path=str(tmp_path / "wsgate.ini"), files=(FileReference("x", "y", "key.pem"),))
    descriptors = read_files(asked)
    secret.write_text("changed")
    files = Files(tmp_path, descriptors)
    assert Path(files.path("key.pem")).read_text() == "secret"
    assert Path(files.path("key.pem")).read_text() == "secret"
    assert Path(files.path(INI)).read_text() == "ini"
    with pytest.raises(PermissionError):
        os.write(descriptors["key.pem"], b"x")
    close_files(descriptors)


def test_a_missing_file_leaves_none_open(tmp_path: Path):
    (tmp_path / "wsgate.ini").write_text("ini")
    before = open_descriptors()
    asked = plan(path=str(tmp_path / "wsgate.ini"), files=(FileReference("backend a", "ca_file", "none.pem"),))
    with pytest.raises(StartError, match=r"\[backend a\] ca_file: cannot read .*none\.pem: No such file"):
        read_files(asked)
    assert open_descriptors() == before


def test_a_plan_is_what_the_file_asks_for(tmp_path: Path):
    ini = tmp_path / "wsgate.ini"
    ini.write_text(
        "[wsgate]\nuser = nobody\ndrain_timeout = 3\n"
        "[listener a]\nbind = 127.0.0.1:1\ntls = off\n[sip]\nbind = 127.0.0.1:2\n"
    )
    made = read(str(ini))
    assert (made.user, made.group, made.drain_timeout, made.directory) == ("nobody", None, 3.0, tmp_path)
    assert made.endpoints[0] == Endpoint("listener", "a", Address("127.0.0.1", 1))
    assert [reference.name for reference in made.files] == ["wsgate.key"]
    assert (tmp_path / "wsgate.key").exists()


def test_a_plan_that_cannot_be_made_says_why(tmp_path: Path):
    with pytest.raises(StartError, match=r"none\.ini: cannot be read: No such file"):
        read(str(tmp_path / "none.ini"))


def test_the_names_of_a_certificate_hold_loopback():
    assert list(own_names())[-3:] == ["localhost", "127.0.0.1", "::1"]


def several(endpoint: Endpoint, workers: int) -> Plan:
    return plan(*(endpoint._replace(worker=number) for number in range(workers)))._replace(workers=workers)


@pytest.mark.parametrize("kind", ["listener", "turn-udp", "turn-tcp"])
def test_workers_share_a_port_with_a_socket_each(kind: str):
    opened = open_sockets(several(Endpoint(kind, "a", Address("127.0.0.1", 0)), 3))
    bound = set(addresses(opened).values())
    assert (len(opened), len(bound)) == (3, 1)
    assert bound.pop().port > 0
    close_all(opened)


@pytest.mark.parametrize("kind", ["listener", "turn-udp"])
def test_a_shared_port_of_somebody_else_is_found_taken(kind: str):
    """Another wsgate would say SO_REUSEPORT too, and take half of the clients."""
    first = open_sockets(several(Endpoint(kind, "a", Address("127.0.0.1", 0)), 2))
    before = open_descriptors()
    address = next(iter(addresses(first).values()))
    with pytest.raises(StartError, match="Address already in use"):
        open_sockets(several(Endpoint(kind, "a", address), 2))
    assert open_descriptors() == before
    close_all(first)


def readable(some: Iterable[socket.socket]) -> socket.socket:
    """One of them that has something, waited for."""
    found, _, _ = select.select(list(some), [], [], 20)
    assert found
    return found[0]


def test_connections_are_spread_over_the_workers():
    opened = open_sockets(several(Endpoint("listener", "a", Address("127.0.0.1", 0)), 2))
    port = next(iter(addresses(opened).values())).port
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
    accepted = dict.fromkeys(opened.values(), 0)
    for _ in clients:
        listening = readable(accepted)
        listening.accept()[0].close()
        accepted[listening] += 1
    assert min(accepted.values()) >= 8
    for client in clients:
        client.close()
    close_all(opened)


def test_what_a_worker_shared_goes_to_the_others_until_it_is_back():
    opened = open_sockets(several(Endpoint("listener", "a", Address("127.0.0.1", 0)), 2))
    before = addresses(opened)
    closed = close_streams(opened, 0)
    assert [endpoint.worker for endpoint in closed] == [0]
    address = next(iter(addresses(opened).values()))
    clients = [socket.create_connection(address) for _ in range(16)]
    [listening] = opened.values()
    for client in clients:
        listening.accept()[0].close()
        client.close()
    assert reopen(opened, closed) == []
    assert addresses(opened) == before
    close_all(opened)


def test_a_packet_of_a_client_comes_to_the_same_worker_each_time():
    """TURN over UDP: an allocation lives in one worker."""
    opened = open_sockets(several(Endpoint("turn-udp", "turn", Address("127.0.0.1", 0)), 3))
    address = next(iter(addresses(opened).values()))
    for _ in range(8):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(5):
                client.sendto(b"x", address)
        got = set()
        for _ in range(5):
            bound = readable(opened.values())
            bound.recv(10)
            got.add(bound)
        assert len(got) == 1
    close_all(opened)


def test_an_inbox_keeps_the_borders_of_messages_and_is_bounded():
    reading, writing = inbox()
    writing.send(b"one")
    writing.send(b"two")
    assert (reading.recv(100), reading.recv(100)) == (b"one", b"two")
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 100_000:
            writing.send(b"x" * 1000)
            sent += 1
    assert 10 < sent < 100_000
    reading.close()
    writing.close()


def test_turn_over_udp_is_at_each_address_behind_a_wildcard():
    """RFC 8489 §6.3.1: an answer comes from where the request went; with one address the kernel has no choice."""
    hosts = ("127.0.0.1", "127.0.0.2", "2001:db8::1")
    for workers in (1, 2):
        asked = [Endpoint("turn-udp", "turn", Address("0.0.0.0", 0), number) for number in range(workers)]
        opened = open_sockets(plan(*asked, hosts=hosts, workers=workers))
        port = opened[asked[0]].getsockname()[1]
        assert set(opened) == {
            *asked,
            *(one._replace(address=Address(host, port)) for one in asked for host in hosts[:2]),
        }
        assert {sock.getsockname() for sock in opened.values()} == {
            (host, port) for host in ("0.0.0.0", "127.0.0.1", "127.0.0.2")
        }
        close_all(opened)
    for address, places in ((Address("0.0.0.0", 0), hosts[1:]), (Address("127.0.0.1", 0), hosts)):
        only = open_sockets(plan(Endpoint("turn-udp", "turn", address), hosts=places))
        assert len(only) == 1
        close_all(only)


def test_addresses_behind_a_wildcard_are_bounded_and_may_fail(caplog: pytest.LogCaptureFixture):
    """A machine may have thousands; one that has just gone is no reason not to start."""
    hosts = ("127.0.0.1", "192.0.2.77", *(f"127.0.1.{number}" for number in range(100)))
    opened = open_sockets(plan(Endpoint("turn-udp", "turn", Address("0.0.0.0", 0)), hosts=hosts))
    assert len(opened) == OWN_ADDRESSES_MAX
    assert "of 102 addresses only 64" in caplog.text
    close_all(opened)


def test_a_port_of_somebody_else_behind_a_wildcard_is_found_taken():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.2", 0))
        asked = Endpoint("turn-udp", "turn", Address("0.0.0.0", taken.getsockname()[1]))
        with pytest.raises(StartError, match="Address already in use"):
            open_sockets(plan(asked, hosts=("127.0.0.1", "127.0.0.2")))
