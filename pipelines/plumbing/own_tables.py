"""The mark of tables that this package wrote."""

from __future__ import annotations

from typing import Final

# marks a folder of tables that we wrote, so `recsys forget` may change them
FRAMES: Final = ".frames"
