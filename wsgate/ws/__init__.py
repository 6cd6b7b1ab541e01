"""WebSocket (RFC 6455) as a pure machine: frames and one connection."""
