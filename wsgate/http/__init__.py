"""HTTP/1.1 messages that pass through: heads, bodies and what a relay changes in them. Without sockets."""
