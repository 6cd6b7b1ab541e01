"""The names of SIP headers: compact forms, and the ways nearly everybody writes them (RFC 3261 §7.3). Pure."""

from __future__ import annotations

COMPACT_FORMS = {
    b"v": b"via",
    b"f": b"from",
    b"t": b"to",
    b"i": b"call-id",
    b"m": b"contact",
    b"l": b"content-length",
    b"c": b"content-type",
    b"k": b"supported",
    b"s": b"subject",
    b"e": b"content-encoding",
    b"o": b"event",
    b"r": b"refer-to",
    b"b": b"referred-by",
    b"u": b"allow-events",
    b"a": b"accept-contact",
    b"d": b"request-disposition",
    b"j": b"reject-contact",
    b"x": b"session-expires",
    b"y": b"identity",
}
"""RFC 3261 §7.3.3 and the registry of later RFCs: one letter to the lower-case long name."""

SPELLINGS = {
    spelling: long
    for long in (
        *COMPACT_FORMS.values(),
        *(b"call-id", b"cseq", b"max-forwards", b"route", b"record-route", b"path", b"require", b"proxy-require"),
        *(b"allow", b"expires", b"user-agent", b"server", b"authorization", b"proxy-authorization", b"accept"),
    )
    for spelling in (long, long.title(), {b"call-id": b"Call-ID", b"cseq": b"CSeq"}.get(long, long))
} | COMPACT_FORMS
"""Names as nearly everybody writes them: told by one look, and one object for each name."""


def long_name(written: bytes) -> bytes:
    """The long form of a header's name in lower case."""
    lower = written.lower()
    return COMPACT_FORMS.get(lower, lower)
