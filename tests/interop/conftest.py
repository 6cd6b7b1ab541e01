"""What the two files of tests of the web phone share: the system, the browser, and the pages that a test opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.interop.chromium import Chromium, WebPhone
from tests.interop.phone_system import PASSWORD, Opener, PhoneSystem


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhoneSystem]:
    found = PhoneSystem(tmp_path_factory.mktemp("system"))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One with a fake microphone that beeps, which takes any certificate."""
    with Chromium(tmp_path_factory.mktemp("browser"), flags=["--ignore-certificate-errors"]) as found:
        yield found


@pytest.fixture
def phone(system: PhoneSystem, browser: Chromium) -> Iterator[Opener]:
    """phone(user) opens a page and registers; phone() leaves the form empty. Further arguments are the query's."""
    with ExitStack() as stack:

        def opened(
            user: str = "", *, base: str = system.plain, missing: tuple[str, ...] = (), **query: str
        ) -> WebPhone:
            found = WebPhone(browser, base, query, missing=missing)
            stack.callback(found.page.close)
            return found.register(user, PASSWORD) if user else found

        yield opened
