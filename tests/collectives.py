"""Counts the messages between devices in a compiled program."""

import re
from collections import Counter

from jax.stages import Compiled

# An asynchronous one is a pair, -start and -done, and counts once.
_MESSAGE = re.compile(r" (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(")


def collectives(program: Compiled) -> Counter[str]:
    """How many there are of each kind, by XLA's names."""
    text = program.as_text()
    assert text is not None
    return Counter(_MESSAGE.findall(text))
