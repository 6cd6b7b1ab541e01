"""Digest authentication for SIP (RFC 3261 §22, RFC 7616, RFC 8760; rule G3). Pure.

Nonces are signed, not stored: they carry their time, the epoch of this process and random bytes under an HMAC that
covers the realm too. Only the nonces that a right password was shown for are remembered, with the highest nonce count.
A new epoch makes every older nonce stale: it begins with the process, whose memory of counts is empty, and when that
memory is full. So no replay ever passes, and a client that is not replaying only has to answer once more.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wsgate.credentials import Hashes, Users
from wsgate.errors import ProtocolError
from wsgate.sip.headers import Uri, parse_uri, unescape, unquote

NONCE_LIFETIME_SECONDS = 300.0
"""How long a nonce may be used."""
MAX_NONCES = 100_000
"""Nonces whose count is remembered; each stands for a right password."""
MAX_CREDENTIALS = 8
"""Authorization lines of one message that are looked at."""

_PARAMETER = re.compile(
    rb'[ \t]*([A-Za-z0-9.!%*_+`\'~-]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s,"]*)[ \t]*(?:,|\Z)', re.DOTALL
)
_SCHEME = re.compile(rb"[ \t]*Digest[ \t]+", re.IGNORECASE)
_COUNT = re.compile(rb"[0-9A-Fa-f]{8}\Z")
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_NONCE_BYTES = 6 + 4 + 8 + 16
_MAC_BYTES = 16
_NO_COUNT = 2**32
"""The count of a nonce that was used without qop: nothing comes after it (RFC 2069 knows no counts)."""


class DigestAlgorithm(enum.Enum):
    """Hash functions of HTTP digest that wsgate speaks (RFC 7616, RFC 8760)."""

    MD5 = "MD5"
    SHA256 = "SHA-256"


class Result(NamedTuple):
    """Who it is, or None; `stale`: the password was right but the nonce must be a new one."""

    user: str | None
    stale: bool = False


class Credentials(NamedTuple):
    """An Authorization or Proxy-Authorization value in parts, quotes and escapes resolved."""

    username: bytes
    realm: bytes
    nonce: bytes
    uri: bytes
    response: bytes
    algorithm: bytes
    qop: bytes
    nonce_count: bytes
    cnonce: bytes


_FAILED = Result(None)
_STALE = Result(None, True)


class Digest:
    """Challenges and verifies. `key` signs the nonces; wall time is `now + wall_offset`, in seconds.

    `users` may be replaced when the user file was read again.
    """

    def __init__(
        self,
        users: Users,
        algorithms: Iterable[DigestAlgorithm],
        key: bytes,
        random_bytes: Callable[[int], bytes],
        wall_offset: float = 0.0,
        *,
        max_nonces: int = MAX_NONCES,
    ) -> None:
        self.users = users
        self.wall_offset = wall_offset
        self._algorithms = frozenset(algorithms)
        self._key = key
        self._random_bytes = random_bytes
        self._max_nonces = max_nonces
        # Stands in for the hashes of a user that is not there, so that asking costs the same.
        self._nobody = Hashes(random_bytes(16).hex(), random_bytes(32).hex())
        self._epoch = random_bytes(4)
        # Two generations of counts: the older one is dropped when all its nonces are too old anyway.
        self._counts: dict[bytes, int] = {}
        self._older_counts: dict[bytes, int] = {}
        self._generation_began = float("-inf")

    def challenge(self, realm: str, proxy: bool, stale: bool, now: float) -> list[tuple[bytes, bytes]]:
        """The header lines of a 401 or, `proxy`, a 407: SHA-256 where a user has it, and MD5 (G3).

        The strongest first (RFC 8760 §2.4). MD5 has to be the last: JsSIP and SIP.js keep the last WWW-Authenticate
        of a response and stop when that is not MD5.
        """
        name = b"Proxy-Authenticate" if proxy else b"WWW-Authenticate"
        quoted_realm = re.sub(rb'(["\\])', rb"\\\1", realm.encode())
        nonce = self._new_nonce(realm, now)
        return [
            (
                name,
                b'Digest realm="%b", nonce="%b", algorithm=%b, qop="auth"%b'
                % (quoted_realm, nonce, algorithm.value.encode(), b", stale=true" if stale else b""),
            )
            for algorithm in reversed(DigestAlgorithm)
            if self._offers(algorithm, realm)
        ]

    def verify(self, values: Iterable[bytes], method: bytes, uri: bytes, realm: str, now: float) -> Result:
        """Judge the Authorization (or Proxy-Authorization) values of a request with this method and Request-URI.

        Values of other schemes and realms are passed over; the first of our realm decides (RFC 3261 §22.3).
        """
        for value in list(values)[:MAX_CREDENTIALS]:
            try:
                credentials = parse_credentials(value)
            except ProtocolError:
                continue
            if credentials.realm == realm.encode():
                return self._judge(credentials, method, uri, realm, now)
        return _FAILED

    def _offers(self, algorithm: DigestAlgorithm, realm: str) -> bool:
        if algorithm not in self._algorithms:
            return False
        return algorithm is DigestAlgorithm.MD5 or self.users.stores_sha256(realm)

    def _judge(self, credentials: Credentials, method: bytes, uri: bytes, realm: str, now: float) -> Result:
        algorithm = _ALGORITHMS.get(credentials.algorithm.upper())
        if algorithm is None or not self._offers(algorithm, realm) or credentials.qop.lower() not in (b"", b"auth"):
            return _FAILED
        user = credentials.username.decode("utf-8", "replace")
        hashes = self.users.get((user, realm))
        secret = _hash_of(hashes or self._nobody, algorithm) or _hash_of(self._nobody, algorithm)
        expected = response(algorithm, secret.encode(), credentials, method)
        right = hmac.compare_digest(expected, credentials.response.lower())
        if not right or hashes is None or not _hash_of(hashes, algorithm):
            return _FAILED
        if not _same_target(credentials.uri, uri):
            return _FAILED
        if not self._nonce_is_fresh(credentials.nonce, realm, now) or not self._count_is_new(credentials, now):
            return _STALE
        return Result(user)

    def _new_nonce(self, realm: str, now: float) -> bytes:
        time = int((now + self.wall_offset) * 1000).to_bytes(6, "big")
        head = time + self._epoch + self._random_bytes(8)
        return base64.urlsafe_b64encode(head + self._mac(head, realm)).rstrip(b"=")

    def _mac(self, head: bytes, realm: str) -> bytes:
        return hmac.digest(self._key, head + realm.encode(), "sha256")[:_MAC_BYTES]

    def _nonce_is_fresh(self, nonce: bytes, realm: str, now: float) -> bool:
        # A nonce that we never made is only stale too: its owner knows the password (RFC 7616 §3.3).
        try:
            raw = base64.b64decode(nonce + b"=" * (-len(nonce) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return False
        head, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        if len(raw) != _NONCE_BYTES or not hmac.compare_digest(mac, self._mac(head, realm)):
            return False
        age = now + self.wall_offset - int.from_bytes(head[:6], "big") / 1000
        return head[6:10] == self._epoch and age <= NONCE_LIFETIME_SECONDS

    def _count_is_new(self, credentials: Credentials, now: float) -> bool:
        """Take the nonce count; False for a replay, or when no more nonces can be remembered."""
        self._turn_generation(now)
        nonce = credentials.nonce
        count = int(credentials.nonce_count, 16) if credentials.qop else _NO_COUNT
        known = self._counts.get(nonce, self._older_counts.get(nonce, 0))
        if count <= known or (known and not credentials.qop):
            return False
        if not known and len(self._counts) + len(self._older_counts) >= self._max_nonces:
            self._new_epoch()
            return False
        self._counts[nonce] = count
        self._older_counts.pop(nonce, None)
        return True

    def _turn_generation(self, now: float) -> None:
        elapsed = now - self._generation_began
        if elapsed > NONCE_LIFETIME_SECONDS:
            self._older_counts = self._counts if elapsed <= 2 * NONCE_LIFETIME_SECONDS else {}
            self._counts = {}
            self._generation_began = now

    def _new_epoch(self) -> None:
        self._epoch = self._random_bytes(4)
        self._counts.clear()
        self._older_counts.clear()


_ALGORITHMS = {b"": DigestAlgorithm.MD5, b"MD5": DigestAlgorithm.MD5, b"SHA-256": DigestAlgorithm.SHA256}


def parse_credentials(value: bytes) -> Credentials:
    """`Digest name=value, ...` in parts. Raises ProtocolError (RFC 3261 §25.1, RFC 7616 §3.4)."""
    scheme = _SCHEME.match(value)
    if scheme is None:
        raise ProtocolError("not Digest credentials")
    parameters: dict[bytes, bytes] = {}
    position = scheme.end()
    while position < len(value):
        found = _PARAMETER.match(value, position)
        if found is None:
            raise ProtocolError("malformed credentials")
        name = found[1].lower()
        if name in parameters:
            raise ProtocolError("a parameter of the credentials stands twice")
        parameters[name] = unquote(found[2])
        position = found.end()
    credentials = Credentials(
        username=_username(parameters),
        realm=parameters.get(b"realm", b""),
        nonce=parameters.get(b"nonce", b""),
        uri=parameters.get(b"uri", b""),
        response=parameters.get(b"response", b""),
        algorithm=parameters.get(b"algorithm", b""),
        qop=parameters.get(b"qop", b""),
        nonce_count=parameters.get(b"nc", b""),
        cnonce=parameters.get(b"cnonce", b""),
    )
    if not credentials.nonce or not credentials.uri or not credentials.response:
        raise ProtocolError("incomplete credentials")
    if credentials.qop and not (_COUNT.match(credentials.nonce_count) and credentials.cnonce):
        raise ProtocolError("qop without nc and cnonce")
    return credentials


def _username(parameters: dict[bytes, bytes]) -> bytes:
    """The user name, from `username` or the extended `username*` (RFC 7616 §3.4, RFC 5987), never from both."""
    extended = parameters.get(b"username*")
    if extended is None:
        return parameters.get(b"username", b"")
    charset, _, rest = extended.partition(b"'")
    if charset.upper() != b"UTF-8" or b"username" in parameters:
        raise ProtocolError("malformed user name")
    return _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), rest.partition(b"'")[2])


def response(algorithm: DigestAlgorithm, secret: bytes, credentials: Credentials, method: bytes) -> bytes:
    """The response that `secret`, H(user:realm:password) in hex, makes of these credentials (RFC 7616 §3.4.1)."""
    second = _hex(algorithm, method + b":" + credentials.uri)
    middle = (credentials.nonce_count, credentials.cnonce, credentials.qop) if credentials.qop else ()
    return _hex(algorithm, b":".join((secret, credentials.nonce, *middle, second)))


def _hex(algorithm: DigestAlgorithm, data: bytes) -> bytes:
    if algorithm is DigestAlgorithm.MD5:
        return hashlib.md5(data, usedforsecurity=False).hexdigest().encode()
    return hashlib.sha256(data).hexdigest().encode()


def _hash_of(hashes: Hashes, algorithm: DigestAlgorithm) -> str:
    return hashes.md5 if algorithm is DigestAlgorithm.MD5 else hashes.sha256


def _same_target(digest_uri: bytes, request_uri: bytes) -> bool:
    """True when both name the same user and host; proxies may change the rest (RFC 3261 §22.4)."""
    if digest_uri == request_uri:
        return True
    try:
        return _user_and_host(parse_uri(digest_uri)) == _user_and_host(parse_uri(request_uri))
    except ProtocolError:
        return False


def _user_and_host(uri: Uri) -> tuple[bytes, str]:
    return unescape(uri.user or b""), uri.host
