"""``ui``: which runs and models the local dashboard shows, and where it listens."""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import Place, Section


class UiConfig(Section):
    """The local dashboard."""

    runs: list[Place] = Field(
        ["runs"], description="folders of run folders, or run folders themselves (recsys ui FOLDER…)"
    )
    model: Place = Field(
        "",
        description="one more model to try: models:/NAME@ALIAS, models:/NAME/VERSION, a bundle or a pulled folder",
    )
    host: str = Field("127.0.0.1", min_length=1, description="any other than a loopback address needs ui.token_env")
    port: int = Field(8080, ge=0, le=65535, description="0: any free one")
    token_env: str = Field(
        "",
        description="environment variable with a token of 16 characters or more, which the browser asks for as a "
        "password; empty: none, on loopback only",
    )
    names: list[str] = Field(
        [],
        description="names in the browser's address bar that are answered, beside localhost, ui.host, this machine's "
        "name and IP addresses",
    )
