"""The one entry: registries and OCI layout folders behind one interface."""

from __future__ import annotations

from gateway.registry.client import Registries
from gateway.registry.layout import LayoutSource
from gateway.registry.reference import Reference
from gateway.registry.source import ImageSource


class ImageSources:
    """Gives the source that serves a reference. Owns both kinds."""

    def __init__(self, registries: Registries, layouts: LayoutSource) -> None:
        self._registries, self._layouts = registries, layouts

    def open_source(
        self, reference: Reference, *, insecure: bool = False, credentials: str | None = None
    ) -> ImageSource:
        """The source for ``reference``; ``insecure`` and ``credentials`` mean nothing to a folder."""
        if reference.is_folder:
            return self._layouts
        return self._registries.source(insecure=insecure, credentials=credentials)

    async def aclose(self) -> None:
        """Close connections."""
        await self._layouts.aclose()
        await self._registries.aclose()
