"""Owns what a policy server's weight label means: which policy version it names, and whether a server has the wanted weights.

A label is ours to choose. Weights loaded from a folder are labelled with their version, ``7``; weights received over a process group
with their version and a digest of the folder that holds the same weights, ``7+3fa2c1d0``, because such a server still names the folder
it was started from. Any other label (``default``, or the mark of an update under way) names no version of ours.
"""

import hashlib
import re
from dataclasses import dataclass

from services.common.wire.store import PolicyVersion

OURS = re.compile(r"(\d{1,9})(\+[0-9a-f]{8})?")
UNKNOWN = -1
RECEIVING = "receiving:"
"""Begins the label of a server whose weights are being overwritten piece by piece: no token may be sampled from them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a server says it has loaded."""

    label: str
    """Its ``weight_version``."""
    path: str


def version_of(label: object) -> int:
    """The policy version a label names, `UNKNOWN` where it is none of ours."""
    match = OURS.fullmatch(str(label))
    return UNKNOWN if match is None else int(match[1])


def disk_label(wanted: PolicyVersion) -> str:
    """The label of weights loaded from ``wanted.path``."""
    return str(wanted.version)


def memory_label(wanted: PolicyVersion) -> str:
    """The label of weights received from the trainer's memory, the same that lie in ``wanted.path``."""
    digest = hashlib.blake2b(wanted.path.encode(), digest_size=4).hexdigest()
    return f"{wanted.version}+{digest}"


def receiving_label(wanted: PolicyVersion) -> str:
    """The label of a server between its first and its last received bucket."""
    return f"{RECEIVING}{wanted.version}"


def holds(weights: Weights, wanted: PolicyVersion) -> bool:
    """Whether a server that says ``weights`` has exactly the weights of ``wanted``."""
    return weights == Weights(disk_label(wanted), wanted.path) or weights.label == memory_label(wanted)
