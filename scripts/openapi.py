"""Write openapi/gateway.json from the code, or with --check fail when the committed file differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gateway.api.app import create_app
from gateway.config import Settings

TARGET = Path(__file__).resolve().parent.parent / "openapi" / "gateway.json"


def main() -> int:
    """Exit status 1 when --check finds a difference."""
    text = json.dumps(create_app(Settings()).openapi(), indent=2, sort_keys=True) + "\n"
    if "--check" in sys.argv:
        if TARGET.read_text() != text:
            print(f"{TARGET} is not what the code says; run: python scripts/openapi.py", file=sys.stderr)
            return 1
        print(f"{TARGET.name} is what the code says")
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
