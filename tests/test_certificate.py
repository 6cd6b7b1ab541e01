"""The self-signed certificate: names, lifetime, a key that belongs to it."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from wsgate.certificate import VALID_DAYS, self_signed

NOW = datetime.datetime(2030, 1, 2, tzinfo=datetime.timezone.utc)


def test_names_lifetime_and_key():
    made = self_signed(["gate.test", "localhost", "127.0.0.1", "::1"], NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gate.test", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    assert begin < NOW
    assert end - begin == datetime.timedelta(days=VALID_DAYS)
    assert load_pem_private_key(made.private_key, None).public_key() == certificate.public_key()


def test_each_is_new():
    one, other = self_signed(["a.test"], NOW), self_signed(["a.test"], NOW)
    assert one.private_key != other.private_key
