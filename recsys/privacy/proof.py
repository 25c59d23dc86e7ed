"""The proof of deletion: a signed list of every searched file with its checksum and the result.

The list contains no id, only a salted hash of each and the salt, so that a deleted user can check
that the list is about them. It names no user only if ids cannot be guessed: ids from a small set,
such as numbers or e-mail addresses, can be found by trying all of them.

The signature is Ed25519 (RFC 8032). The operator of the service publishes the public key that is in
the list; with it, anyone can check that the list was not changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from recsys.errors import ConfigError
from recsys.privacy.footprints import SearchTargets
from recsys.privacy.unpacked import parts

_FORMAT: Final = 1


@dataclass
class Searched:
    """A searched file and the traces found in it."""

    path: str
    bytes: int
    sha256: str
    parts: int  # number of searched parts, the file itself included
    found: list[str] = field(default_factory=list)  # "id" or "history", and where in the file
    # parts that could not be opened and were not searched
    unreadable: list[str] = field(default_factory=list)


def search_file(path: Path, shown: str, traces: SearchTargets) -> Searched:
    """Search every part of a file; what cannot be opened is listed as unreadable.

    Parameters
    ----------
    path : Path
        The file.
    shown : str
        The path as the proof names it.
    traces : SearchTargets
        What to search for.

    Returns
    -------
    Searched
        Size in bytes, checksum and findings. A file that cannot be read has no checksum, and the
        reason is in ``unreadable``.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        result = Searched(shown, path.stat().st_size, digest, 0)
        for part in parts(path):
            if part.kind == "unreadable":
                result.unreadable.append(f"{part.where or 'file'}: {part.data}"[:300])
                continue
            result.parts += 1
            result.found += [
                f"{what} in {part.where or 'the file'}" for what in traces.found_in(part)
            ]
    except OSError as error:
        return Searched(shown, 0, "", 0, unreadable=[f"file: {error.strerror}"])
    result.found = sorted(set(result.found))
    return result


def files_in(paths: Iterable[Path], leave: Iterable[Path] = ()) -> list[Path]:
    """Every file in these files and folders, once; links to files are followed, links to folders
    are not.
    """
    found: dict[Path, None] = {}
    left = {path.resolve() for path in leave}
    for given in paths:
        files = (
            [given]
            if given.is_file()
            else sorted(path for path in given.rglob("*") if path.is_file())
        )
        found |= {path: None for path in files if path.resolve() not in left}
    # a link and its file are searched once, under the name that comes first
    by_target = {path.resolve(): path for path in reversed(found)}
    return [path for path in found if by_target[path.resolve()] == path]


def proof_of(
    users: Iterable[str], searched: list[Searched], traces: SearchTargets, others: dict[str, Any]
) -> dict[str, Any]:
    """The unsigned list; ``others`` has the other content: time, models, membership test, what
    remains.

    Parameters
    ----------
    users : Iterable of str
        Ids of the deleted users; only their hashes are in the list.
    searched : list of Searched
        All searched files.
    traces : SearchTargets
        What was searched for; only its counts are in the list.
    others : dict of str to JSON values
        The other content.

    Returns
    -------
    dict of str to JSON values
        ``result`` is ``found``, ``unreadable`` (not found, but some parts were not searched) or
        ``nothing found``.
    """
    # a new salt for each proof, so that the hashes of two proofs cannot be compared
    salt = secrets.token_hex(16)
    hidden = sorted(hashlib.sha256(f"{salt}{user}".encode()).hexdigest() for user in users)
    holding = [one for one in searched if one.found]
    unread = [one for one in searched if one.unreadable]
    return {
        "format": _FORMAT,
        **others,
        "users": {"number": len(hidden), "salt": salt, "sha256_of_salt_and_id": hidden},
        "looked_for": {
            "ids": len(traces.ids),
            "ids_searched_byte_by_byte": sum(one.distinct for one in traces.ids),
            "events": traces.num_events,
            "stretches_of_history": len(traces.stretches),
            # named, because these parts of the history were not searched for
            "stretches_that_others_have_too": traces.num_common,
        },
        "result": "found" if holding else "unreadable" if unread else "nothing found",
        "files": len(searched),
        "bytes": sum(one.bytes for one in searched),
        "found_in": [one.path for one in holding],
        "unreadable": [one.path for one in unread],
        "searched": [asdict(one) for one in searched],
    }


# ---------------------------------------------------------------------------------------- signature


def default_key() -> Path:
    """``$XDG_CONFIG_HOME/multigrain/forget.pem``."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "multigrain" / "forget.pem"


def signing_key(key_path: str) -> Any:
    """The private key in a file; if the default key does not exist, it is created, readable by its
    owner only.

    Raises
    ------
    ConfigError
        There is no key, or it is not an Ed25519 key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = Path(key_path) if key_path else default_key()
    if not key_path and not path.exists():
        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # private from the first byte, and never over a key that another command has just made
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        return made
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"forget.signing_key names {path}, which holds no readable private key"
            f" ({error}); make one with `openssl genpkey -algorithm ed25519 -out forget.pem`"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"forget.signing_key names {path}, which is not an Ed25519 key; make one with"
            " `openssl genpkey -algorithm ed25519`"
        )
    return key


def signed(content: dict[str, Any], key: Any) -> dict[str, Any]:
    """The content with the public key and the signature over everything."""
    from cryptography.hazmat.primitives import serialization

    public = (
        key.public_key()
        .public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        .hex()
    )
    whole = {**content, "public_key": public}
    return {**whole, "signature": key.sign(_canonical(whole)).hex()}


def is_signed(proof: dict[str, Any], public_key: str = "") -> bool:
    """Whether the signature of a proof is valid, by the key in it or by the given one
    (hexadecimal).
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    content = {key: value for key, value in proof.items() if key != "signature"}
    # the key in the proof only shows that nothing was changed; anyone can sign with a key of their
    # own
    if public_key and content.get("public_key") != public_key:
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(content["public_key"]))
        key.verify(bytes.fromhex(proof["signature"]), _canonical(content))
    except (InvalidSignature, KeyError, ValueError, TypeError):
        return False
    return True


def _canonical(content: dict[str, Any]) -> bytes:
    # one form for equal content, because a signature is of bytes
    return json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
