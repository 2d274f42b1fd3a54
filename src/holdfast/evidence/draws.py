"""The secret of the draws: the log commits to it before the first step, and opens it when the run is over.

    commitment = sha256( domain, run, secret, blind )        opened by the secret and the blind

Whoever reads the log while the run goes on learns nothing; whoever reads it afterwards sees that what was checked was not
chosen to suit anybody. The blind is the coordinator's signature of the run's name, so a resumed run commits to the same.
"""

from __future__ import annotations

import hashlib

from holdfast.evidence.envelope import pack
from holdfast.evidence.identity import Identity

COMMITMENT_DOMAIN = b"holdfast/draws/1\0"
BLIND_DOMAIN = b"holdfast/blind/1\0"


def blind(signer: Identity, run: str) -> bytes:
    """64 bytes that nobody without the key of `signer` can tell, the same for the same run each time."""
    return signer.sign(BLIND_DOMAIN + pack(run))


def commitment(run: str, secret: int, blind: bytes) -> bytes:
    """32 bytes that bind to `secret` and do not show it.

    >>> commitment("run", 1, b"b") == commitment("run", 1, b"b") != commitment("run", 2, b"b")
    True
    """
    return hashlib.sha256(COMMITMENT_DOMAIN + pack((run, secret, blind))).digest()
