"""Keys to sign checkpoints with, as `openssl genpkey` and `openssl pkey -pubout` write them."""

import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def write(path: Path, *, other: bool = False) -> tuple[str, str]:
    """A new private key at `path`, and the public one beside it; their files.

    Args:
        other: of another kind than Ed25519.
    """
    key: Any = ec.generate_private_key(ec.SECP256R1()) if other else ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(private)
    os.chmod(path, 0o600)
    path.with_name(f"{path.name}.pub").write_bytes(public)
    return str(path), f"{path}.pub"
