"""A TURN server as a machine, with clients that speak to it in bytes and a clock moved by hand."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from wsgate.addr import Address
from wsgate.call_peers import CallPeers
from wsgate.metrics import Counters
from wsgate.turn import stun
from wsgate.turn.auth import Credentials, UserKeys, long_term_key
from wsgate.turn.effects import Client, CloseRelay, Effect, OpenRelays, RelayAddress, Reply
from wsgate.turn.peers import Peers
from wsgate.turn.server import TurnServer
from wsgate.turn.settings import TurnSettings
from wsgate.turn.stun import Integrity, MessageClass, Method
from wsgate.turn.values import PasswordAlgorithm

REALM = "sixteen.char.rlm"
RELAY = "198.41.0.9"
PEER = Address("8.8.8.8", 4000)
UDP = stun.REQUESTED_TRANSPORT(17)
USERS = ("alice", "bob")
SECRET = b"secret"


class World:
    """A server, its one opener of sockets, and a clock moved by hand."""

    def __init__(
        self,
        relay_addresses: tuple[RelayAddress, ...] = (RelayAddress(RELAY, RELAY),),
        calls: CallPeers | None = None,
        share: tuple[int, int] = (0, 1),
        **options: Any,
    ) -> None:
        self.now = 1000.0
        self.settings = dataclasses.replace(TurnSettings(realm=REALM, relay_ports=(50000, 50999)), **options)
        keys = {user: UserKeys(*(long_term_key(user, REALM, "pw", one) for one in PasswordAlgorithm)) for user in USERS}
        self.peers = Peers(own_hosts=[RELAY], relay_ports=self.settings.relay_ports)
        self.counters = Counters()
        self.open: set[Address] = set()
        self.busy: set[Address] = set()
        self.exhausted = False
        self.server = TurnServer(
            self.settings,
            credentials=Credentials(REALM, keys, [SECRET]),
            peers=self.peers,
            relay_addresses=relay_addresses,
            nonce_keys=[b"k" * 32],
            unix_time=lambda: self.now,
            random_bytes=random.Random(7).randbytes,
            counters=self.counters,
            calls=calls,
            share=share,
        )

    def settle(self, effects: list[Effect]) -> list[Effect]:
        """Open and close relay addresses as an engine would; returns the other effects."""
        rest: list[Effect] = []
        for effect in effects:
            if isinstance(effect, OpenRelays):
                if self.exhausted or self.busy & set(effect.relays):
                    more = self.server.relays_refused(effect.relays, self.exhausted, self.now)
                else:
                    assert not self.open & set(effect.relays)
                    self.open |= set(effect.relays)
                    more = self.server.relays_opened(effect.relays, self.now)
                rest += self.settle(more)
            else:
                if isinstance(effect, CloseRelay):
                    self.open.remove(effect.relay)
                rest.append(effect)
        return rest

    def receive(self, data: bytes, client: Client) -> list[Effect]:
        return self.settle(self.server.receive(data, client, self.now))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.settle(self.server.handle_timer(self.now))


class Phone:
    """A client of the server: knows its credentials and counts its transactions."""

    def __init__(self, world: World, port: int = 40000, user: str = "alice", password: str = "pw") -> None:
        self.world = world
        self.client = Client(0, Address("192.0.2.1", port))
        self.user = user
        self.key = long_term_key(user, REALM, password, PasswordAlgorithm.MD5)
        self.nonce = b""
        self.transaction = port << 16
        self.effects: list[Effect] = []

    def raw(self, method: int, *fields: Any, fresh: bool = True, **options: Any) -> stun.Message | None:
        """Send one request as it is; the answer, or None. All other effects stand in `effects`."""
        self.transaction += fresh
        transaction_id = self.transaction.to_bytes(12, "big")
        data = stun.encode(method, MessageClass.REQUEST, transaction_id, fields, **options)
        effects = self.world.receive(data, self.client)
        replies = [effect for effect in effects if isinstance(effect, Reply)]
        self.effects = [effect for effect in effects if not isinstance(effect, Reply)]
        assert len(replies) <= 1
        if not replies:
            return None
        assert replies[0].client == self.client
        self.bytes = replies[0].data
        answer = stun.parse(replies[0].data)
        assert (answer.method, answer.transaction_id) == (method, transaction_id)
        return answer

    def ask(self, method: int, *fields: Any, **options: Any) -> stun.Message:
        """Send an authenticated request, with a nonce asked for when there is none."""
        if not self.nonce:
            challenge = self.raw(method)
            assert challenge is not None
            self.nonce = challenge.get(stun.NONCE) or b""
        login = (stun.USERNAME(self.user), stun.REALM(REALM), stun.NONCE(self.nonce))
        answer = self.raw(method, *login, *fields, integrity=(Integrity.SHA1, self.key), **options)
        assert answer is not None
        return answer

    def allocate(self, *fields: Any, **options: Any) -> stun.Message:
        return self.ask(Method.ALLOCATE, UDP, *fields, **options)

    def relayed(self) -> Address:
        """Allocate and return the relayed address."""
        address = self.allocate().get(stun.XOR_RELAYED_ADDRESS)
        assert address is not None
        return address

    def permit(self, *peers: Address) -> stun.Message:
        return self.ask(Method.CREATE_PERMISSION, *map(stun.XOR_PEER_ADDRESS, peers))

    def bind(self, number: int, peer: Address) -> stun.Message:
        return self.ask(Method.CHANNEL_BIND, stun.CHANNEL_NUMBER(number), stun.XOR_PEER_ADDRESS(peer))

    def refresh(self, *fields: Any) -> stun.Message:
        return self.ask(Method.REFRESH, *fields)

    def send(self, peer: Address, data: bytes, *fields: Any) -> list[Effect]:
        indication = [stun.XOR_PEER_ADDRESS(peer), stun.DATA(data), *fields]
        return self.world.receive(stun.encode(Method.SEND, MessageClass.INDICATION, bytes(12), indication), self.client)


def code(answer: stun.Message | None) -> int:
    """The error code, 0 for success."""
    assert answer is not None
    if answer.message_class is MessageClass.SUCCESS:
        return 0
    error = answer.get(stun.ERROR_CODE)
    assert error is not None
    return error.code
