"""What a client installs at its allocation, and its Send indications (RFC 8656 §9 to §12; rules P1 to P3, P5). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wsgate.addr import Address, canonical_host
from wsgate.errors import ProtocolError
from wsgate.metrics import Counters
from wsgate.turn import stun
from wsgate.turn.allocation import Allocation
from wsgate.turn.answers import Answers, Request
from wsgate.turn.effects import Effect, SendToPeer
from wsgate.turn.peers import Admittance
from wsgate.turn.settings import CHANNEL_NUMBERS, TurnSettings
from wsgate.turn.values import Family, family_of


class Permissions:
    """Permissions and channels, for the requests of users who own the allocation.

    `arm` sets the timer of an allocation that has changed.
    """

    def __init__(
        self,
        settings: TurnSettings,
        admittance: Admittance,
        answers: Answers,
        counters: Counters,
        arm: Callable[[Allocation], None],
    ) -> None:
        self.channel_numbers = CHANNEL_NUMBERS[settings.channel_range]
        """The channel numbers that clients may use (rule P2)."""
        self._permissions_per_allocation = settings.permissions_per_allocation
        self._channels_per_allocation = settings.channels_per_allocation
        self._admittance = admittance
        self._answers = answers
        self._counters = counters
        self._arm = arm

    def create(self, request: Request, allocation: Allocation) -> list[Effect]:
        """CreatePermission (RFC 8656 §10.2, rule P1): all peers or none."""
        peers = request.message.all(stun.XOR_PEER_ADDRESS)
        hosts = {peer.host: None for peer in peers}
        if not hosts:
            return self._answers.error(request, 400)
        if not all(allocation.relay_for(host) for host in hosts):
            return self._answers.error(request, 443)
        if not all(self._admittance.host_allowed(allocation.user, host) for host in hosts):
            self._counters.count("turn_peers_refused")
            return self._answers.error(request, 403)
        if self._is_full(allocation, hosts):
            return self._answers.error(request, 508)
        effects = [effect for host in hosts for effect in allocation.permit(host, request.now)]
        self._arm(allocation)
        return effects + self._answers.success(request)

    def bind_channel(self, request: Request, allocation: Allocation) -> list[Effect]:
        """ChannelBind (RFC 8656 §12.2, rule P2)."""
        number, peer = request.message.get(stun.CHANNEL_NUMBER), request.message.get(stun.XOR_PEER_ADDRESS)
        if number not in self.channel_numbers or number is None or peer is None:
            return self._answers.error(request, 400)
        if not allocation.relay_for(peer.host):
            return self._answers.error(request, 443)
        if allocation.is_tcp:
            return self._answers.error(request, 403)
        channel = allocation.channels.get(number)
        if (channel is not None and channel.peer != peer) or allocation.numbers.get(peer, number) != number:
            return self._answers.error(request, 400)
        if not self._admittance.allowed(allocation.user, peer):
            self._counters.count("turn_peers_refused")
            return self._answers.error(request, 403)
        full = channel is None and len(allocation.channels) >= self._channels_per_allocation
        if full or self._is_full(allocation, (peer.host,)):
            return self._answers.error(request, 508)
        effects = allocation.bind(number, peer, request.now)
        self._arm(allocation)
        return effects + self._answers.success(request)

    def send(self, request: Request, allocation: Allocation | None) -> list[Effect]:
        """A Send indication (RFC 8656 §11.2, rule P3): what is not complete or has no permission is dropped."""
        message = request.message
        try:
            peer, data = message.get(stun.XOR_PEER_ADDRESS), message.get(stun.DATA)
        except ProtocolError:
            peer, data = None, None
        if allocation is None or allocation.is_tcp or peer is None or data is None or message.unknown:
            self._counters.count("turn_send_dropped")
            return []
        relay = allocation.relay_for(peer.host)
        if (
            relay is None
            or peer.host not in allocation.permissions
            or not self._admittance.port_allowed(allocation.user, *peer)
        ):
            self._counters.count("turn_send_dropped")
            return []
        return [SendToPeer(relay, peer, data, _dont_fragment(request, peer))]

    def _is_full(self, allocation: Allocation, hosts: Iterable[str]) -> bool:
        more = sum(host not in allocation.permissions for host in hosts)
        return more > 0 and len(allocation.permissions) + more > self._permissions_per_allocation


def _dont_fragment(request: Request, peer: Address) -> bool:
    """Whether DF is asked for and may be: between datagrams by IPv4 on both sides alone (RFC 8656 §13 to §15)."""
    if request.message.get(stun.DONT_FRAGMENT) is None:
        return False
    hosts = canonical_host(request.client.address.host), peer.host
    return request.is_stream or all(family_of(host) is Family.IPV4 for host in hosts)
