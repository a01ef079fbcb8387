"""blockgate's gateway: verified byte ranges of container images over HTTP."""

__version__ = "0.1.0"
