"""blockgate's node client: byte ranges of a URL as a kernel block device."""

__version__ = "0.1.0"
