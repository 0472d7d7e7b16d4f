# SPDX-License-Identifier: Apache-2.0
"""Signatures of files by OpenSSH keys, as `ssh-keygen -Y sign` makes them and `git` uses them."""

import subprocess
from pathlib import Path

from .errors import ArtifactError

NAMESPACE = "vgen-artifacts"
"""What a signature has to be for: one that a key's owner made for something else is none."""


def require_signature(path: Path, content: bytes, signers: Path) -> None:
    """Raise unless one of the signers signed a file.

    Args:
        path: The file; its signature is beside it, with `.sig` at the end of the name.
        content: What was read of it.
        signers: A file of OpenSSH's format ALLOWED SIGNERS (see ssh-keygen(1)).

    Raises:
        ArtifactError: There is no such signature, or it can't be checked.
    """
    signature = path.with_name(f"{path.name}.sig")
    for each in (signers, signature):
        if not each.is_file():
            raise ArtifactError(f"{path} isn't trusted, because {each} isn't there; {_how(path)}")
    found = _ssh_keygen("find-principals", "-s", str(signature), "-f", str(signers))
    for principal in found.stdout.decode(errors="replace").split("\n") if found.returncode == 0 else ():
        who = principal.strip()
        arguments = ("-f", str(signers), "-I", who, "-n", NAMESPACE, "-s", str(signature))
        if who and _ssh_keygen("verify", *arguments, content=content).returncode == 0:
            return
    raise ArtifactError(f"{path} isn't trusted, because nobody of {signers} signed it as it is; {_how(path)}")


def _ssh_keygen(task: str, *arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["ssh-keygen", "-Y", task, *arguments], input=content, capture_output=True, check=False)
    except OSError as error:
        raise ArtifactError(f"signatures can't be checked: ssh-keygen, which is a part of OpenSSH, {error}") from None


def _how(path: Path) -> str:
    return f"`ssh-keygen -Y sign -n {NAMESPACE} -f KEY {path.name}` makes its signature"
