"""Pseudonyms: keyed hashes that replace user ids in all artefacts.

Why keyed: anyone can invert a plain hash of a customer number by hashing all customer numbers.
Without the key a pseudonym reveals nothing; with the key, a service hashes the id of a request
again (HMAC-SHA256, RFC 2104). Neither the configuration nor an artefact contains the key. They
contain only its location and a check value that identifies a wrong key.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from recsys.config.privacy import PseudonymConfig
from recsys.errors import ConfigError

SAMPLE: Final = 10_000  # number of ids that are checked
_LEAST_BYTES: Final = 16
# 128 bits: some two of 10⁹ users share a pseudonym with probability 10⁻²¹
_DIGEST_CHARS: Final = 32
_CHECK: Final = b"multigrain: which key is it"
_LOG = logging.getLogger(__name__)
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")


@dataclass(frozen=True)
class Pseudonyms:
    """The pseudonyms under one key; ``repr`` does not show the key."""

    _key: bytes

    @staticmethod
    def of(config: PseudonymConfig) -> Pseudonyms | None:
        """Read the key from the configured location; None where ids are not pseudonymised.

        Raises
        ------
        ConfigError
            There is no key at the location, or it is too short to be secret.
        """
        if config.key_env:
            where, text = f"the variable {config.key_env}", os.environ.get(config.key_env, "")
        elif config.key_file:
            where = f"the file {config.key_file}"
            try:
                text = Path(config.key_file).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"data.pseudonymise.key_file: {where} cannot be read ({error})"
                ) from None
        else:
            return None
        key = text.strip().encode()
        if len(key) < _LEAST_BYTES:
            raise ConfigError(
                f"data.pseudonymise: {where} has {len(key)} bytes, expected a secret of at least"
                f" {_LEAST_BYTES}; make one with `openssl rand -hex 32`, keep it outside of the run"
                " folder, and set it on every machine that reads the source"
            )
        return Pseudonyms(key)

    def __repr__(self) -> str:
        return f"Pseudonyms(key {self.check})"

    @property
    def check(self) -> str:
        """The check value: identifies the key without revealing it."""
        return self._hex(_CHECK)[:16]

    def of_id(self, user_id: str) -> str:
        """The pseudonym of an id: 32 hexadecimal digits.

        >>> Pseudonyms(b"sixteen bytes...").of_id("ann@example.org")
        'be15942e4f1c4e17d954f0ca25a90730'
        """
        return self._hex(user_id.encode())

    def of_column(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """The pseudonyms of a column of ids; null stays null."""
        coded = ids.cast(pa.string()).combine_chunks()
        coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
        coded = coded.dictionary_encode()
        names = pa.array([self.of_id(one) for one in coded.dictionary.to_pylist()], pa.string())
        return pa.chunked_array(
            [pa.DictionaryArray.from_arrays(coded.indices, names).cast(pa.string())]
        )

    def _hex(self, content: bytes) -> str:
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()[:_DIGEST_CHARS]


def pseudonym_lookup(described: Mapping[str, str]) -> Callable[[str], str]:
    """The function from the id in a request to the id in the model: the pseudonym, where the model
    has pseudonyms and the key is available.

    Without the key the function returns the id unchanged, so requests can name pseudonyms or new
    users.

    Parameters
    ----------
    described : Mapping[str, str]
        Description in the manifest or bundle: location of the key and its check value; empty
        without pseudonyms.
    """
    if not described:
        return str
    places = {key: described[key] for key in ("key_env", "key_file") if described.get(key)}
    try:
        key = Pseudonyms.of(PseudonymConfig.model_validate(places))
    except ConfigError:
        key = None
    if key is None or not hmac.compare_digest(key.check, described["check"]):
        _LOG.warning(
            "the model knows users by pseudonyms, but %s (%s): requests must name pseudonyms",
            "the key is missing" if key is None else "the key is a different one",
            ", ".join(places.values()),
        )
        return str
    return key.of_id


def email_note(ids: pa.Array) -> str:
    """A note if ids of users look like e-mail addresses; else "".

    >>> email_note(pa.array(["17"]))
    ''
    """
    found = email_like(ids)
    if not found:
        return ""
    return (
        f"{found:,} of the first {min(len(ids), SAMPLE):,} user ids look like e-mail addresses,"
        " and every artefact would contain them: set data.pseudonymise.key_env to replace them by"
        " keyed hashes"
    )


def email_like(ids: pa.Array, sample: int = SAMPLE) -> int:
    """How many of the first ids look like e-mail addresses.

    >>> email_like(pa.array(["ann@example.org", "b@c", "17"]))
    1
    """
    return sum(bool(_EMAIL.fullmatch(one)) for one in ids.slice(0, sample).to_pylist() if one)
