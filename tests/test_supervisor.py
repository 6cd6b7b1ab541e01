"""The parts of the process floor that need no process: restart delays, the channel, user maps."""

import os

import pytest

from wsgate import daemon
from wsgate.control import MAX_TEXT_CHARACTERS, pair
from wsgate.errors import StartError
from wsgate.worker_process import RestartDelay


def test_a_worker_that_keeps_dying_young_is_started_ever_later():
    delay = RestartDelay()
    assert [delay.after(1.0) for _ in range(9)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_good_life_makes_the_next_start_quick_again():
    delay = RestartDelay()
    assert [delay.after(1.0), delay.after(1.0), delay.after(60.0), delay.after(1.0)] == [0.5, 1.0, 0.5, 1.0]


def test_messages_keep_their_borders_and_bring_a_descriptor():
    one, other = pair()
    reader, writer = os.pipe()
    one.send("file", reader, name="a.pem")
    one.send("reload")
    first, second = other.receive(), other.receive()
    assert first is not None
    assert (first.word, first.fields) == ("file", {"name": "a.pem"})
    assert first.descriptor is not None
    os.write(writer, b"through")
    assert os.read(first.descriptor, 100) == b"through"
    assert second is not None
    assert (second.word, second.descriptor) == ("reload", None)
    for descriptor in (reader, writer, first.descriptor):
        os.close(descriptor)
    one.close()
    other.close()


def test_nothing_there_yet_and_the_end_are_told_apart():
    one, other = pair()
    with pytest.raises(BlockingIOError):
        other.receive()
    one.close()
    assert other.receive() is None
    other.close()


def test_a_long_reason_is_cut():
    one, other = pair()
    one.send("failed", text="x" * 100000)
    message = other.receive()
    assert message is not None
    assert message.fields == {"text": "x" * MAX_TEXT_CHARACTERS}
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("uid_map", "known"),
    [("0 0 4294967295\n", True), ("0 1000 1\n", False), ("0 1000 1\n1 100000 65536\n", True), ("", False)],
)
def test_a_user_that_the_namespace_does_not_know_is_not_taken(uid_map: str, known: bool):
    assert daemon.mapped(65534, uid_map) is known


def test_an_empty_user_stays_who_started_it():
    assert daemon.account("", None, "x.ini") is None


def test_a_missing_user_or_group_names_the_option():
    with pytest.raises(StartError, match=r"x\.ini \[wsgate\] user: there is no user 'no-such-user'"):
        daemon.account("no-such-user", None, "x.ini")
    with pytest.raises(StartError, match=r"x\.ini \[wsgate\] group: there is no group 'no-such-group'"):
        daemon.account(None, "no-such-group", "x.ini")
