"""Who may use the TURN server: long-term and time-limited credentials, nonces, and what is answered without them.

RFC 8489 §9.2, draft-uberti-behave-turn-rest; rules A1 to A4 and the bucket of S4.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import ipaddress
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from wsgate.addr import Address
from wsgate.credentials import Users
from wsgate.turn import stun
from wsgate.turn.stun import Method
from wsgate.turn.tokens import TokenKeys
from wsgate.turn.values import PasswordAlgorithm

NONCE_COOKIE = b"obMatJos2"
"""What a nonce of a server with RFC 8489's features begins with (§9.2)."""
NONCE_MAC_BYTES = 16
TOKEN_MARK = ";"
"""Before the key id in the user of an allocation by a third-party token; no name in a users file begins so."""
TOKEN_METHODS = (Method.ALLOCATE, Method.REFRESH)
"""What a token must be shown for; requests about an allocation that stands need its key alone, as clients send them."""
REGISTERED_MARK = "@"
"""Before the registration's id in the user of an allocation (rule A5)."""
CLOCK_STEP_SECONDS = 5
"""How far in the future the time of a nonce may lie after the clock was set back."""
SOURCES_MAX = 65536
"""How many sources of unauthenticated requests are remembered (rules S4, Q2)."""

PASSWORD_ALGORITHMS_BIT = 1
USERNAME_ANONYMITY_BIT = 2
COTURN_MAC_KEY_BYTES = 16
_NOBODY_KEY = bytes(16)


class SecretHash(enum.Enum):
    """HMAC of time-limited credentials (rule A4)."""

    SHA1 = "sha1"
    SHA256 = "sha256"


class UserKeys(NamedTuple):
    """The keys of a user of the file: H(user:realm:password); `sha256` empty where the file has none (rule A3)."""

    md5: bytes
    sha256: bytes = b""


def opaque_string(text: str) -> str:
    """User names and passwords in their one spelling (OpaqueString, RFC 8265 §4.2). Raises ValueError."""
    if text.isascii() and text.isprintable():
        return text
    spaced = "".join(" " if unicodedata.category(character) == "Zs" else character for character in text)
    if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") for character in spaced):
        raise ValueError("a character that user names and passwords may not have")
    return unicodedata.normalize("NFC", spaced)


def long_term_key(user: str, realm: str, password: str, algorithm: PasswordAlgorithm) -> bytes:
    """H(user:realm:password) (RFC 8489 §9.2.2, §18.5.1; rule A3). Raises ValueError."""
    text = f"{opaque_string(user)}:{realm}:{opaque_string(password)}".encode()
    if algorithm is PasswordAlgorithm.MD5:
        return hashlib.md5(text, usedforsecurity=False).digest()
    return hashlib.sha256(text).digest()


def user_hash(user: str, realm: str) -> bytes:
    """The value of USERHASH (RFC 8489 §14.4)."""
    return hashlib.sha256(f"{user}:{realm}".encode()).digest()


def time_limited_password(secret: bytes, username: str, kind: SecretHash) -> str:
    """The password of the username `expiry[:id]` (rule A4)."""
    return base64.b64encode(hmac.digest(secret, username.encode(), kind.value)).decode()


def users_of_realm(users: Users, realm: str) -> dict[str, UserKeys]:
    """The users of a users file who belong to `realm`; the file may serve the registrar as well."""
    return {
        opaque_string(name): UserKeys(bytes.fromhex(hashes.md5), bytes.fromhex(hashes.sha256))
        for (name, of_realm), hashes in users.items()
        if of_realm == realm
    }


class HandedOut(NamedTuple):
    """Credentials that go with a registration (rule A5); they are good for `ttl` seconds at most."""

    username: str
    password: str
    ttl: int


class Registrations(NamedTuple):
    """Whose registration lets them relay (rule A5): `secrets` are wsgate's own, the first makes passwords.

    `is_registered` is asked with the id in a username for as long as the credentials are used.
    """

    secrets: tuple[bytes, ...]
    is_registered: Callable[[str], bool]


class Credentials:
    """Everybody who may use the server: users of the file, secrets of time-limited credentials, and whoever has
    registered (rules A3 to A5)."""

    def __init__(
        self,
        realm: str,
        users: Mapping[str, UserKeys] | None = None,
        secrets: Iterable[str | bytes] = (),
        secret_hash: SecretHash = SecretHash.SHA1,
        registrations: Registrations | None = None,
        token_keys: TokenKeys | None = None,
    ) -> None:
        self.registrations = registrations
        self.token_keys = token_keys
        self.realm = realm
        self.users = dict(users or {})
        self.secrets = tuple(secret.encode() if isinstance(secret, str) else secret for secret in secrets)
        self.secret_hash = secret_hash
        self._names_by_hash = {user_hash(name, realm): name for name in self.users}
        both = all(keys.sha256 for keys in self.users.values())
        self.algorithms = (PasswordAlgorithm.SHA256, PasswordAlgorithm.MD5) if both else (PasswordAlgorithm.MD5,)

    @property
    def security_features(self) -> int:
        """The 24 bits after the nonce cookie (RFC 8489 §9.2, §18.1). Names that are not listed cannot be hashed."""
        listed = not self.secrets and self.registrations is None and self.token_keys is None
        return PASSWORD_ALGORITHMS_BIT | (USERNAME_ANONYMITY_BIT if listed else 0)

    def name_of(self, hashed: bytes) -> str:
        """The user name behind a USERHASH, empty when there is none."""
        return self._names_by_hash.get(hashed, "")

    def candidates(
        self, name: str, algorithm: PasswordAlgorithm, unix_time: float, holder: str = ""
    ) -> list[tuple[bytes, str]]:
        """Every (key, user) to try for `name`, user empty where that key opens nothing.

        As many for a name that is not known as for one that is, so that both cost the same (rule A1). Credentials that
        have expired are still those of `holder`: what was begun in time goes on.
        """
        keys = self.users.get(name)
        key = b"" if keys is None else keys.md5 if algorithm is PasswordAlgorithm.MD5 else keys.sha256
        found = [(key or _NOBODY_KEY, name if key else "")]
        expiry, colon, identity = name.partition(":")
        has_expiry = expiry.isascii() and expiry.isdigit() and len(expiry) <= 15
        alive = has_expiry and int(expiry) > unix_time
        user = ":" + (identity if colon else expiry)
        if not alive and not (has_expiry and user == holder):
            user = ""
        for secret in self.secrets:
            password = time_limited_password(secret, name, self.secret_hash)
            found.append((long_term_key(name, self.realm, password, algorithm), user))
        if self.registrations is not None:
            # A registration that ended is nobody any more: no new allocation, no refresh of old ones (rule A5).
            registered = REGISTERED_MARK + identity
            good = alive or (has_expiry and registered == holder)
            if not (good and self.registrations.is_registered(identity)):
                registered = ""
            for secret in self.registrations.secrets:
                password = time_limited_password(secret, name, self.secret_hash)
                found.append((long_term_key(name, self.realm, password, algorithm), registered))
        return found

    def hand_out(self, registration: str, ttl: int, unix_time: float) -> HandedOut | None:
        """Credentials for the registration with this id (rule A5); None where none are handed out."""
        if self.registrations is None:
            return None
        username = f"{int(unix_time) + ttl}:{registration}"
        return HandedOut(
            username, time_limited_password(self.registrations.secrets[0], username, self.secret_hash), ttl
        )


class Accepted(NamedTuple):
    """The request is who it says: `user` is the name in the file, `:id` of time-limited credentials, `@id` of a
    registration, or `;kid:holder` of a token, which may allocate for `seconds_max`."""

    user: str
    key: bytes
    seconds_max: int | None = None


def same_user(one: str, other: str) -> bool:
    """True when `other` may go on with what `one` began (RFC 8656 §5).

    A token names nobody, and its successor may be of another key: any good one goes on with what a token began.
    """
    return one == other or one[:1] == other[:1] == TOKEN_MARK


class Refused(NamedTuple):
    """The request is answered with `code`; `challenge` says whether REALM and NONCE go with it."""

    code: int
    challenge: bool


class Authenticator:
    """Judges requests (rules A1, A2). It keeps no state: a nonce is time and HMAC, good also after a restart.

    `nonce_keys` are secret and lasting; the first makes nonces, all are honoured. `unix_time` tells seconds since 1970,
    which nonces and expiry times speak of.
    """

    def __init__(
        self, credentials: Credentials, nonce_keys: Sequence[bytes], nonce_lifetime: int, unix_time: Callable[[], float]
    ) -> None:
        self.credentials = credentials
        self._nonce_keys = tuple(nonce_keys)
        self._nonce_lifetime = nonce_lifetime
        self._unix_time = unix_time

    def nonce(self, address: Address) -> bytes:
        """A new nonce for the client at `address`: 40 characters."""
        return self._nonce_of(int(self._unix_time()), address, self._nonce_keys[0])

    def _nonce_of(self, made: int, address: Address, key: bytes) -> bytes:
        credentials = self.credentials
        head = NONCE_COOKIE + base64.b64encode(credentials.security_features.to_bytes(3, "big"))
        stamp = (made & 0xFFFFFFFF).to_bytes(4, "big")
        text = b"%s %s %s %s" % (head, stamp, bytes(credentials.algorithms), str(address).encode())
        mac = hmac.digest(key, text, "sha256")[:NONCE_MAC_BYTES]
        return head + base64.urlsafe_b64encode(stamp + mac).rstrip(b"=")

    def _nonce_age(self, nonce: bytes, address: Address) -> int | None:
        """Seconds since we gave `nonce` to the client at `address` with the algorithms of today; None: we did not."""
        now = int(self._unix_time())
        try:
            stamp = base64.urlsafe_b64decode(nonce[13:] + b"=")[:4]
        except ValueError:
            return None
        age = (now - int.from_bytes(stamp, "big") + CLOCK_STEP_SECONDS & 0xFFFFFFFF) - CLOCK_STEP_SECONDS
        made = [self._nonce_of(now - age, address, key) for key in self._nonce_keys]
        return age if sum(hmac.compare_digest(nonce, one) for one in made) > 0 else None

    def check(
        self, message: stun.Message, address: Address, session: Accepted | None = None, holder: str = ""
    ) -> Accepted | Refused:
        """The judgement on a request from `address` (RFC 8489 §9.2.4). Raises ProtocolError for unreadable values.

        `session` is the token that was shown last for the allocation of this 5-tuple, `holder` that allocation's user.
        With credentials that have expired since the holder goes on with it: a browser cannot change those of a call,
        which may be longer (rule A4; a registration that ended does end it, rule A5).
        """
        if message.integrity is None:
            return Refused(401, challenge=True)
        name, hashed = message.get(stun.USERNAME), message.get(stun.USERHASH)
        realm, nonce = message.get(stun.REALM), message.get(stun.NONCE)
        if (name is None and hashed is None) or realm is None or nonce is None:
            return Refused(400, challenge=False)
        age = self._nonce_age(nonce, address)
        algorithm = self._algorithm(message)
        if age is not None and algorithm is None:
            # What was offered with a nonce of ours is known, however old it is; with any other it is not.
            return Refused(400, challenge=False)
        if age is None or algorithm is None or age > self._nonce_lifetime:
            return Refused(438, challenge=True)
        token = message.get(stun.ACCESS_TOKEN)
        if token is not None and self.credentials.token_keys is not None:
            return self._check_token(message, self.credentials.token_keys, name or "", token)
        if session is not None and self.credentials.token_keys is not None and message.method not in TOKEN_METHODS:
            good = message.verify(session.key) and session.user.startswith(f"{TOKEN_MARK}{name}:")
            return session if good and realm == self.credentials.realm else Refused(401, challenge=True)
        if name is None:
            name = self.credentials.name_of(hashed or b"")
        accepted = None
        if message.method == Method.ALLOCATE:
            holder = ""
        for key, user in self.credentials.candidates(_spelling(name), algorithm, self._unix_time(), holder):
            verified = message.verify(key)
            if verified and user and realm == self.credentials.realm:
                accepted = Accepted(user, key)
        return accepted or Refused(401, challenge=True)

    def _check_token(self, message: stun.Message, keys: TokenKeys, kid: str, token: bytes) -> Accepted | Refused:
        """USERNAME is the key's id, the integrity that of the key in the token (RFC 7635 §4.1, §9; rule A4)."""
        opened = keys.open(kid, token, self._unix_time())
        whole = _NOBODY_KEY if opened is None else opened.mac_key
        # Clients on coturn's library use the first 16 bytes of the key, as long as other keys are.
        verified = [key for key in (whole, whole[:COTURN_MAC_KEY_BYTES]) if message.verify(key)]
        if opened is None or not verified or message.get(stun.REALM) != self.credentials.realm:
            return Refused(401, challenge=True)
        holder = hashlib.sha256(opened.mac_key).hexdigest()[:16]
        return Accepted(f"{TOKEN_MARK}{kid}:{holder}", verified[0], opened.seconds)

    def _algorithm(self, message: stun.Message) -> PasswordAlgorithm | None:
        """The algorithm of the request's key; None when it was bid down or is not offered (RFC 8489 §9.2.4)."""
        offered = message.get(stun.PASSWORD_ALGORITHMS)
        chosen = message.get(stun.PASSWORD_ALGORITHM)
        if offered is None and chosen is None:
            return PasswordAlgorithm.MD5
        if offered != self.credentials.algorithms:
            return None
        return next((one for one in self.credentials.algorithms if one == chosen), None)


def _spelling(name: str) -> str:
    try:
        return opaque_string(name)
    except ValueError:
        return ""


class UnauthenticatedRate:
    """A token bucket per source over the bytes of unauthenticated answers (rule S4); the table is bounded.

    A source is an IPv4 address or an IPv6 /64. The one that was quiet longest is forgotten first.
    """

    def __init__(self, bytes_per_second: int, sources_max: int = SOURCES_MAX) -> None:
        self._rate = bytes_per_second
        self._sources_max = sources_max
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, host: str, size: int, now: float) -> bool:
        """True when `size` bytes may go to `host` without authentication; they are then counted.

        A full bucket allows any one answer, and owes what it lacked: a long realm must not lock everybody out.
        """
        source = self.source_of(host)
        tokens, since = self._buckets.pop(source, (float(self._rate), now))
        tokens = min(float(self._rate), tokens + (now - since) * self._rate)
        good = tokens >= min(size, self._rate)
        self._buckets[source] = (tokens - size if good else tokens, now)
        if len(self._buckets) > self._sources_max:
            del self._buckets[next(iter(self._buckets))]
        return good

    @staticmethod
    def source_of(host: str) -> str:
        """Whose bucket pays for `host`."""
        return _prefix64(host) if ":" in host else host

    def __len__(self) -> int:
        return len(self._buckets)


def _prefix64(host: str) -> str:
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64))
