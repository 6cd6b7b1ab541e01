"""User files: what their lines may hold, and how they are edited and replaced."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.credentials import (
    CredentialsError,
    Hashes,
    format_line,
    hashes_of,
    parse_line,
    parse_users,
    with_user,
    without_user,
)
from wsgate.userfile import add_user, delete_user, list_users

MD5 = "939e7578ed9e3c518a452acee763bce9"
SHA256 = "7987c64c30e25f1b74be53f966b49b90f2808aa92faf9a00262392d7b4794232"


def test_hashes_are_those_of_the_rfcs():
    """RFC 2617 §3.5 (MD5 of Mufasa) and RFC 7616 §3.9.1 (both, another realm and password)."""
    assert hashes_of("Mufasa", "testrealm@host.com", "Circle Of Life").md5 == MD5
    assert hashes_of("Mufasa", "http-auth@example.org", "Circle of Life") == Hashes(
        "3d78807defe7de2157e2b0b6573a855f", SHA256
    )


def test_lines_with_one_and_with_two_hashes():
    users = parse_users(f"# a comment\n\nalice:example.com:{MD5}\nbob:example.com:{MD5.upper()}:{SHA256}\r\n")
    assert users["alice", "example.com"] == Hashes(MD5)
    assert users["bob", "example.com"] == Hashes(MD5, SHA256)
    assert len(users) == 2
    assert users.stores_sha256("example.com")
    assert not users.stores_sha256("example.org")


def test_no_sha256_where_nobody_has_it():
    assert not parse_users(f"alice:example.com:{MD5}").stores_sha256("example.com")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alice", "not user:realm"),
        (f"alice:example.com:{MD5}:{SHA256}:more", "not user:realm"),
        (f":example.com:{MD5}", "user name is empty"),
        (f"alice::{MD5}", "realm is empty"),
        ("alice:example.com:secret", "not an MD5"),
        (f"alice:example.com:{MD5}:{MD5}", "not a SHA-256"),
        (f"alice :example.com:{MD5}", "space"),
        (f"al\x07ice:example.com:{MD5}", "control"),
        (f"{'a' * 257}:example.com:{MD5}", "longer"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_never_shown(line, reason):
    with pytest.raises(CredentialsError) as caught:
        parse_users(f"# users\n{line}\n")
    assert str(caught.value).startswith("line 2: ")
    assert reason in str(caught.value)
    assert MD5 not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_one_user_twice_is_an_error():
    with pytest.raises(CredentialsError, match=r"line 2: alice of .* stands here twice"):
        parse_users(f"alice:example.com:{MD5}\nalice:example.com:{MD5}")


@pytest.mark.parametrize(
    ("user", "realm", "password"),
    [("a:b", "r", "p"), ("a", "r:s", "p"), ("", "r", "p"), ("a", "", "p"), ("a", "r", ""), ("#a", "r", "p")],
)
def test_names_that_no_line_can_hold_are_refused(user, realm, password):
    with pytest.raises(CredentialsError):
        hashes_of(user, realm, password)


def test_names_and_passwords_are_written_as_clients_hash_them(tmp_path):
    """RFC 7616 §4, RFC 8265 §4.2: composed, whatever the keyboard or a file gave."""
    path = str(tmp_path / "users")
    assert add_user(path, "jose\u0301", "example.com", "pa\u0308ss wo\u0308rd")
    text = (tmp_path / "users").read_text(encoding="utf-8")
    assert (
        text
        == format_line("jos\u00e9", "example.com", hashes_of("jos\u00e9", "example.com", "p\u00e4ss w\u00f6rd")) + "\n"
    )
    assert not add_user(path, "jos\u00e9", "example.com", "x"), "the same user"
    delete_user(path, "jose\u0301", "example.com")
    assert list_users(path) == []
    (tmp_path / "users").write_text(format_line("jose\u0301", "example.com", Hashes(MD5)) + "\n", encoding="utf-8")
    delete_user(path, "jose\u0301", "example.com")
    assert list_users(path) == [], "one that was written by hand"


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("a\u00a0b", "a space that is not the ASCII one"),
        ("a\u3000b", "a space that is not the ASCII one"),
        ("a\tb", "a control character"),
        ("a\u2028b", "line end"),
        ("a\udc80b", "a control character"),
    ],
)
def test_a_password_that_clients_do_not_write_alike_is_refused(tmp_path, password: str, says: str):
    """RFC 8265 §4.2 maps such a space, RFC 7616 does not; nothing of the password is shown."""
    with pytest.raises(CredentialsError, match=says) as refused:
        add_user(str(tmp_path / "users"), "alice", "example.com", password)
    assert password not in str(refused.value)
    assert not (tmp_path / "users").exists()


names = st.text(
    st.characters(exclude_characters=":", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp", "Cf", "Cn", "Co")),
    min_size=1,
    max_size=20,
)


@given(names.filter(lambda name: name[0] not in "#;"), names, st.text(st.characters(codec="utf-8"), min_size=1))
def test_what_is_written_is_read(user, realm, password):
    hashes = hashes_of(user, realm, password)
    assert parse_line(format_line(user, realm, hashes)) == ((user, realm), hashes)


@given(st.text())
def test_any_text_is_users_or_an_error(text):
    try:
        users = parse_users(text)
    except CredentialsError:
        return
    assert all(":" not in user for user, _ in users)


def test_editing_keeps_other_lines_and_comments():
    text = f"# ours\nalice:example.com:{MD5}\n\n; end\n"
    new = with_user(text, "alice", "example.com", Hashes(SHA256[:32], SHA256))
    assert new == f"# ours\nalice:example.com:{SHA256[:32]}:{SHA256}\n\n; end\n"
    assert with_user("", "bob", "r", Hashes(MD5)) == f"bob:r:{MD5}\n"
    assert with_user(f"alice:r:{MD5}", "bob", "r", Hashes(MD5)) == f"alice:r:{MD5}\nbob:r:{MD5}\n"
    assert without_user(text, "alice", "example.com") == "# ours\n\n; end\n"
    with pytest.raises(CredentialsError, match="no user bob"):
        without_user(text, "bob", "example.com")


def test_the_file_is_made_and_replaced_with_mode_0600(tmp_path):
    path = tmp_path / "users.htdigest"
    assert add_user(str(path), "alice", "example.com", "wonder")
    assert add_user(str(path), "bob", "example.com", "build")
    assert not add_user(str(path), "alice", "example.com", "land")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list_users(str(path)) == [("alice", "example.com", True), ("bob", "example.com", True)]
    assert parse_users(path.read_text())["alice", "example.com"] == hashes_of("alice", "example.com", "land")
    delete_user(str(path), "alice", "example.com")
    assert list_users(str(path)) == [("bob", "example.com", True)]
    assert os.listdir(tmp_path) == ["users.htdigest"]


def test_a_broken_file_is_not_touched(tmp_path):
    path = tmp_path / "users.htdigest"
    path.write_text("broken\n")
    with pytest.raises(CredentialsError, match="line 1"):
        add_user(str(path), "alice", "example.com", "wonder")
    assert path.read_text() == "broken\n"
    path.write_bytes(b"\xff\xfe:r:x\n")
    with pytest.raises(CredentialsError, match="not UTF-8"):
        list_users(str(path))
    assert os.listdir(tmp_path) == ["users.htdigest"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "etc").mkdir()
    link = tmp_path / "users"
    link.symlink_to(tmp_path / "etc" / "users")
    add_user(str(link), "alice", "example.com", "wonder")
    assert link.is_symlink()
    assert (tmp_path / "etc" / "users").exists()


def test_two_writers_lose_nobody(tmp_path):
    path = str(tmp_path / "users")
    writers = [threading.Thread(target=add_user, args=(path, f"user{number}", "r", "p")) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(list_users(path)) == 8
