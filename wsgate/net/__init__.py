"""Sockets, TLS, clock: the only place that knows gevent."""
