"""``ui``: which runs and models the local dashboard shows, and where it listens."""

from __future__ import annotations

from pydantic import Field

from recsys.config.section import PathOrUri, Section


class UiConfig(Section):
    """The local dashboard."""

    runs: list[PathOrUri] = Field(
        ["runs"],
        description="folders of run folders, or run folders themselves (recsys ui FOLDER…)",
    )
    model: PathOrUri = Field(
        "",
        description=(
            "an additional model to try: models:/NAME@ALIAS, models:/NAME/VERSION, a bundle or a"
            " pulled folder"
        ),
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to listen on; any address that is not loopback needs ui.token_env",
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0: any free port")
    token_env: str = Field(
        "",
        description=(
            "environment variable with a token of 16 or more characters, which the browser asks for"
            " as a password; empty: no token, on loopback only"
        ),
    )
    names: list[str] = Field(
        [],
        description=(
            "host names that the server accepts in addition to localhost, ui.host, and the name and"
            " IP addresses of this machine"
        ),
    )
