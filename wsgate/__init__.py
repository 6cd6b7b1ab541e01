"""wsgate: browsers use the SIP servers a company already has."""

__version__ = "0.1.0"
