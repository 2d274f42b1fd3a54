"""The public contract suites: what an author of a part of Holdfast runs to know that the part is right."""

from holdfast.testing.attack import check_attack
from holdfast.testing.defence import check_defence
from holdfast.testing.transport import check_transport

__all__ = ["check_attack", "check_defence", "check_transport"]
