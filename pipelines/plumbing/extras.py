"""Packages that only some commands need."""

from __future__ import annotations

from importlib import import_module

from recsys.errors import ConfigError


def require_extra(verb: str, needs: str, extra: str, modules: tuple[str, ...]) -> None:
    """Import the modules that a verb needs from an extra of this package.

    Parameters
    ----------
    verb : str
        The verb, for the message.
    needs : str
        What the verb needs, in words, for the message.
    extra : str
        Name of the extra.
    modules : tuple[str, ...]
        Names of the modules to import.

    Raises
    ------
    ConfigError
        A module is missing; the message names the extra.
    """
    try:
        for module in modules:
            import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"recsys {verb} needs {needs}, but {error.name or 'a part'} is missing: pip install"
            f" 'multigrain[{extra}]'"
        ) from None
