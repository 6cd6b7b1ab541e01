"""SIP (RFC 3261 and its family) as pure machines."""
