"""From a request to what answers it."""

from __future__ import annotations

from fastapi import Request

from gateway.services import Services


def services_of(request: Request) -> Services:
    """The worker's services."""
    services: Services = request.app.state.services
    return services
