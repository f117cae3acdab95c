"""One call of a function: its arguments, its outputs, and what is drawn for it at random."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check import numbers
from bnderiv.check.arguments import Arguments
from bnderiv.check.numbers import is_inexact


class Call:
    """A function at its arguments.

    Attributes:
      f, reference: the functions as given.
      h, r: the same two as functions (floats, carried) ↦ flat tuple of floating outputs.
      floats, carried: the arguments that are differentiated, and the other arrays.
      out_leaves, value: all outputs of `f`, and its floating outputs.
      cotangent: an array for each entry of `value`.
    """

    def __init__(self, f: Callable, reference: Any, arguments: Arguments, key: Any, tolerances: dict[str, float]):
        self.f, self.tolerances = f, tolerances
        self.reference: Any = reference
        bits = jax.random.bits(jax.random.key(0) if key is None else key, (4,))
        self.entropy = [int(b) for b in np.asarray(bits)]
        self.arguments = arguments
        self.floats, self.carried = arguments.floats, arguments.carried
        self.h = arguments.bind(f)
        self.r: Any = None if reference is None else arguments.bind(reference)
        given = arguments.copies()
        out = f(*given)
        if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(given)):
            self.h = jax.jit(self.h)  # f donates its arguments, which JAX ignores within an outer jit
        flat, self.out_tree = jax.tree_util.tree_flatten_with_path(out)
        self.out_leaves = [leaf for _, leaf in flat]
        self.out_names = ["output" + jax.tree_util.keystr(path) for path, _ in flat]
        self.value = tuple(jnp.asarray(leaf) for leaf in self.out_leaves if is_inexact(leaf))
        self.cotangent = self.draw(self.value, 1)

    # Random draws

    def random(self, seed: int) -> np.random.Generator:
        return np.random.default_rng([seed, *self.entropy])

    def draw(self, like: Sequence[Any], seed: int) -> tuple[jax.Array, ...]:
        """Standard normal numbers of these shapes and dtypes."""
        rng = self.random(seed)

        def normal(a: Any) -> jax.Array:
            drawn = rng.standard_normal(a.shape)
            if jnp.issubdtype(a.dtype, jnp.complexfloating):
                drawn = drawn + 1j * rng.standard_normal(a.shape)
            return jax.device_put(np.asarray(drawn).astype(a.dtype))  # by NumPy, which compiles nothing

        return tuple(normal(a) for a in like)

    def moved(self, seed: int) -> tuple[jax.Array, ...]:
        """A point nearby: every element shrinks by up to a tenth, so signs and zeros stay."""
        rng = self.random(seed)
        return tuple(
            jax.device_put((np.asarray(a) * (1 - 0.1 * rng.random(a.shape))).astype(a.dtype)) for a in self.floats
        )

    def flat_cotangent(self, cotangent: Any) -> tuple[jax.Array, ...]:
        """The user's cotangent, flat; raises ValueError if it does not fit the output."""
        try:
            leaves = self.out_tree.flatten_up_to(cotangent)
        except ValueError as error:
            raise ValueError(f"cotangent must have the structure of the output, {self.out_tree}: {error}") from None
        given = [c for c, o in zip(leaves, self.out_leaves, strict=True) if is_inexact(o)]
        for c, o in zip(given, self.value, strict=True):
            if np.shape(c) != o.shape:
                raise ValueError(f"cotangent must have the shape of the output, {o.shape}, got {np.shape(c)}")
        return tuple(jnp.asarray(c, o.dtype) for c, o in zip(given, self.value, strict=True))

    # Names and dtypes

    @property
    def names(self) -> list[str]:
        return self.arguments.float_names

    @property
    def value_names(self) -> list[str]:
        return [name for name, leaf in zip(self.out_names, self.out_leaves, strict=True) if is_inexact(leaf)]

    @property
    def in_double(self) -> bool:
        return all(a.dtype in (jnp.float64, jnp.complex128) for a in (*self.floats, *self.value))

    @property
    def differentiable(self) -> bool:
        """Whether there is a gradient to check: a floating argument and output that are not empty."""
        return any(a.size for a in self.floats) and any(a.size for a in self.value)

    def tolerance(self, mode: str, table: dict[str, float]) -> float:
        dtypes = [a.dtype for a in (*self.floats, *self.value)]
        return self.tolerances.get(mode, numbers.lookup(table, dtypes))
