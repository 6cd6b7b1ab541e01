"""The errors that cross module borders; every other error stays inside its module."""

from __future__ import annotations


class WsgateError(Exception):
    """Base of all errors that wsgate raises on purpose; its text is fit for an administrator."""


class ConfigurationError(WsgateError):
    """An ini file that cannot be used: names file, section, option, the problem and what is allowed."""

    def __init__(
        self,
        problem: str,
        *,
        file: str = "",
        section: str = "",
        option: str = "",
        allowed: str = "",
    ) -> None:
        place = file
        if section:
            place += f" [{section}]"
        if option:
            place += f" {option}"
        text = f"{place.strip()}: {problem}" if place else problem
        if allowed:
            text += f" (allowed: {allowed})"
        super().__init__(text)
        self.problem = problem
        self.file = file
        self.section = section
        self.option = option
        self.allowed = allowed


class StartError(WsgateError):
    """The daemon cannot start (port in use, unreadable key, missing user): one clear line, exit 1."""


def missing_module(error: ImportError) -> StartError:
    """What to say where a package that wsgate rests on is not installed."""
    return StartError(f"{error}: a package is not installed; pip, run where setup.py lies, brings all: pip install .")


class ProtocolError(WsgateError):
    """A stranger's bytes break their protocol; `reason` is what a peer or a log may be told."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
