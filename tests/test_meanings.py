"""Every figure that wsgate counts has its meaning, and none is explained that nobody counts."""

import ast
from collections.abc import Iterator
from pathlib import Path

from wsgate import meanings

PACKAGE = Path(meanings.__file__).parent


def counted() -> Iterator[str]:
    """The names, or their beginning where a code follows, in each `counters.count(...)`."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "count"
            if is_call and "counters" in ast.unparse(node.func.value):
                yield from names(node.args[0])


def names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from names(node.body)
        yield from names(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        yield from names(node.values[0])
    else:
        assert isinstance(node, ast.Constant), ast.unparse(node)
        yield str(node.value)


def test_every_counter_has_its_meaning_and_every_meaning_its_counter():
    found = set(counted())
    assert len(found) > 100
    assert found == {*meanings.COUNTERS, *meanings.BY_CODE}


def test_the_meaning_of_a_code_is_that_of_its_kind():
    assert meanings.meaning("sip_answers_404") == meanings.BY_CODE["sip_answers_"]
    assert meanings.meaning("flows") == meanings.GAUGES["flows"]
    assert meanings.meaning("of_nobody") == "of nobody"


def test_every_meaning_is_a_sentence():
    for text in (*meanings.COUNTERS.values(), *meanings.GAUGES.values(), *meanings.BY_CODE.values()):
        assert text.endswith(".")
        assert text[0].isupper()
        assert len(text) < 130
