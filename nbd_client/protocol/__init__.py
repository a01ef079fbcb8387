"""NBD without I/O: bytes in, events out, bytes out. Standard library only, no socket, no event loop.

Theory of operation. A connection lives twice: first :class:`~nbd_client.protocol.handshake.Handshake`
(fixed newstyle, the options), then :class:`~nbd_client.protocol.transmission.Transmission` (requests).
Whoever owns the socket feeds whatever arrived, in whatever pieces, to ``receive`` and acts on the events
that come back; the same bytes give the same events however they are cut. Neither class keeps more than one
option or one request header in memory, whatever the peer sends.

Section names quoted in this package are those of the NBD project's ``doc/proto.md``.
"""
