"""The key file: made, read, refused without a secret in the error."""

import pytest

from wsgate import keys


def test_a_new_file_holds_two_keys_the_current_first():
    made = keys.parse(keys.make(lambda count: bytes(range(count))))
    assert [key.id for key in made] == [1, 2]
    assert made[0].secret == bytes(range(32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "1:abcd\n",
        "300:" + "ab" * 32,
        "x:" + "ab" * 32,
        "1:" + "zz" * 32,
        "1:" + "ab" * 32 + "\n1:" + "cd" * 32,
        "\n".join(f"{n}:{'ab' * 32}" for n in range(17)),
    ],
)
def test_what_cannot_be_used_is_refused_without_quoting(text: str):
    with pytest.raises(ValueError, match=r"line|keys") as caught:
        keys.parse(text)
    assert "abab" not in str(caught.value)


def test_a_key_shows_no_secret():
    assert "secret" not in repr(keys.Key(1, b"secret"))
