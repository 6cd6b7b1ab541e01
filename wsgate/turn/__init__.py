"""STUN and TURN (RFC 8489, RFC 8656) as pure machines."""
