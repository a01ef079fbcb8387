"""Schema changes of the catalog, oldest first in ``versions``."""
