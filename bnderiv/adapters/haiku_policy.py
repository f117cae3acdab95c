"""Haiku's mixed-precision policies for our subclasses. Haiku finds a policy by the exact class of a module."""

import threading
from typing import Any

from haiku import mixed_precision

_followed = threading.local()  # by class: the policy last taken from Haiku's class; policies are of a thread


class Follower:
    """A module that follows the policy of Haiku's class of its name, unless its own class has a policy."""

    _theirs: Any

    def __new__(cls, *_: Any, **__: Any) -> Any:
        if "_theirs" in vars(cls):  # policies are not inherited, by subclasses of Haiku's classes either
            follow_policy(cls, cls._theirs)
        return super().__new__(cls)


def follow_policy(ours: Any, theirs: Any) -> None:
    """Give the class `ours` the policy of Haiku's class `theirs`, unless `ours` has one already."""
    taken = vars(_followed).setdefault("policies", {})
    own, policy = mixed_precision.get_policy(ours), mixed_precision.get_policy(theirs)
    if own is not None and own is not taken.get(ours):
        return
    if policy is not None:
        mixed_precision.set_policy(ours, policy)
    elif own is not None:
        mixed_precision.clear_policy(ours)
    taken[ours] = policy
