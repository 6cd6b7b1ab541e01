"""Binding requests of RFC 5780, at the four sockets of a family, spoiled or with any values (rules S1, S3, S4)."""

from __future__ import annotations

from tests.fuzz.chance import INTERESTING, Choices, spoil
from tests.fuzz.target import Target, require
from tests.fuzz.turn import COOKIE, raw
from tests.test_turn_discovery import CLIENTS, Discovering
from wsgate.addr import Address
from wsgate.turn import stun
from wsgate.turn.effects import Client, Reply
from wsgate.turn.stun import MessageClass, Method

PATHS = 8
ANSWER_BYTES_MAX = 120
"""Four addresses of IPv6 and an empty PADDING; a padded one has the length of its request."""
ERROR_BYTES_MAX = 128
FINGERPRINT_BYTES = 8


def binding(data: bytes) -> None:
    """One answer at most, to the host that asked, from a socket of the four, no longer than it may be."""
    chance = Choices(data)
    world, number = Discovering(), 0
    while not chance.is_over:
        number += 1
        path = chance.number(PATHS)
        client = Client(path, Address(CLIENTS[path > 3], 1 + chance.number(65535)))
        request = _request(chance, number.to_bytes(12, "big"))
        sent = world.world.server.receive(request, client, world.world.now, world.world.server.datagram_bytes_max)
        require(len(sent) <= 1, "more than one answer", sent)
        for reply in sent:
            require(isinstance(reply, Reply), "not an answer", reply)
            _judge(world, request, client, reply)  # type: ignore[arg-type]


def _request(chance: Choices, transaction_id: bytes) -> bytes:
    fields = []
    for _ in range(chance.pick((0, 1, 1, 2, 3))):
        fields.append(
            chance.pick(
                (
                    stun.CHANGE_REQUEST(chance.pick((0, 2, 4, 6, 8, 0xFFFFFFFF))),
                    stun.RESPONSE_PORT(chance.pick((0, 1, 53, 65535))),
                    stun.PADDING(bytes(chance.pick((0, 1, 4, 64, 500, 1480, 1900)))),
                    raw(chance.pick((0x0003, 0x0026, 0x0027, 0x802B, 0x802C, 0x0001, 0x7F01)))(
                        chance.take(chance.number(9))
                    ),
                )
            )
        )
    kind = MessageClass.REQUEST if chance.percent(95) else chance.pick(list(MessageClass))
    data = stun.encode(Method.BINDING, kind, transaction_id, fields, fingerprint=chance.percent(20))
    if chance.percent(25):
        data = spoil(chance, data, INTERESTING)
        data = data[:2] + (max(0, len(data) - 20) & 0xFFFC).to_bytes(2, "big") + COOKIE + data[8:]
        data = data[: 20 + (max(0, len(data) - 20) & 0xFFFC)]
    return data


def _judge(world: Discovering, request: bytes, client: Client, reply: Reply) -> None:
    answer = stun.parse(reply.data)
    require(answer.transaction_id == request[8:20], "an answer to something else", reply)
    require(reply.client.address.host == client.address.host, "to another host", reply, client)
    require((reply.client.path > 3) == (client.path > 3), "from a socket of another family", reply, client)
    size = len(reply.data) - FINGERPRINT_BYTES * answer.fingerprint
    if answer.message_class is MessageClass.ERROR:
        require(reply.client == client and size <= ERROR_BYTES_MAX, "an error that goes elsewhere, or too long", reply)
        return
    require(answer.message_class is MessageClass.SUCCESS, "no answer", reply)
    require(len(reply.data) <= max(ANSWER_BYTES_MAX + FINGERPRINT_BYTES, len(request)), "amplified (S4)", reply)
    require(reply.client.address.port != 0, "to port 0", reply)
    require(answer.get(stun.RESPONSE_ORIGIN) == world.places[reply.client.path], "another origin", reply)
    require(answer.get(stun.XOR_MAPPED_ADDRESS) == client.address, "another's address", reply)


TARGETS = [Target("discovery", binding, test_inputs=15)]
