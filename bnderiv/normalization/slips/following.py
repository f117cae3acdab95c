"""Which values a slip gives: the derivation's lines run again, with those of the slip in place of the right ones."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

Line = Callable[[Any], Any]  # a step's value, from those before it
Slip = tuple[str, dict[str, Line]]  # a sentence, and the lines that are wrong


def inputs_of(steps: Any) -> SimpleNamespace | None:
    """What batch norm's lines start from; None for many layers at once, by vmap."""
    x, axis = steps.x, steps.channel_axis % steps.x.ndim
    if steps.gamma.shape != (x.shape[axis],):
        return None
    others = tuple(a for a in range(x.ndim) if a != axis)
    return inputs_over(steps, x.shape, others, others)


def inputs_over(steps: Any, shape: tuple[int, ...], over: tuple[int, ...], rest: tuple[int, ...]) -> SimpleNamespace:
    """What the lines start from, in the shape for the sums: statistics over the axes `over`, γ and β over `rest`."""
    every = math.prod(shape[i] for i in over)
    x, (where, m_bar, v_bar) = (
        np.reshape(steps.x, shape),
        (getattr(steps, a, None) for a in ("where", "m_bar", "v_bar")),
    )
    counts = every
    if where is not None:
        where = np.broadcast_to(where.astype(bool), steps.x.shape).reshape(shape)
        x = np.where(where | np.isfinite(x), x, 0)
        counts = np.maximum(where.sum(over, keepdims=True), 1)

    def laid(a: Any, shared: tuple[int, ...]) -> np.ndarray:
        return np.reshape(a, [1 if i in shared else size for i, size in enumerate(shape)])

    def share(a: np.ndarray) -> np.ndarray:
        return a if where is None else np.where(where, a, 0)

    return SimpleNamespace(
        x=x,
        gamma=laid(steps.gamma, rest),
        beta=laid(steps.beta, rest) if hasattr(steps, "beta") else 0.0,
        dy=np.reshape(getattr(steps, "d_y", steps.dy), shape),  # with a ReLU: δ_y, behind it
        eps=steps.eps,
        m_bar=0.0 if m_bar is None else laid(m_bar, over),
        v_bar=0.0 if v_bar is None else laid(v_bar, over),
        returned=m_bar is not None,
        masked=where is not None,
        M=counts,
        every=every,
        N=shape[over[0]],
        over=over,
        sum=lambda a: a.sum(over, keepdims=True),
        total=lambda a: share(a).sum(over, keepdims=True),
        share=share,
        to_parameters=lambda a: a.sum(rest, keepdims=True),
    )


def spoken(slips: Iterable[Slip], inputs: SimpleNamespace) -> list[Slip]:
    """The slips, their sentences with the numbers of this problem."""
    M, less = (inputs.M, inputs.M - 1) if isinstance(inputs.M, int) else ("n", "n − 1")  # n: those that count
    numbers = {"M": M, "N": inputs.N, "less": less, "every": inputs.every, "eps": float(np.max(inputs.eps))}
    return [(sentence.format(**numbers), lines) for sentence, lines in slips]


def followed(
    right_lines: dict[str, Line],
    slips: list[Slip],
    inputs: SimpleNamespace,
    shaped: Callable[[str, np.ndarray], np.ndarray],
) -> Iterator[Any]:
    """Each slip, in the steps where it is made and in those that follow; `shaped` gives a value its step's shape."""
    right = run(right_lines, inputs)
    later = []  # a slip made in the step itself is likelier than one made before
    for sentence, lines in slips:
        wrong, made_in = run({**right_lines, **lines}, inputs), _made_in(lines)
        for step in itertools.dropwhile(lambda name, lines=lines: name not in lines, right_lines):
            if step not in ("m", "m_back"):
                value, truth = getattr(wrong, step), getattr(right, step)
                if np.array_equal(value, truth, equal_nan=True):
                    continue  # the slip does not change this step
                found = step, sentence, shaped(step, value)
                if step in lines:
                    yield found
                else:
                    later.append((*found, made_in))
    yield from later


def _made_in(lines: dict[str, Line]) -> tuple[str, ...]:
    """The steps that a slip in these lines spoils first; the divisors are no steps."""
    spoiled = {"m": ("mu", "var"), "m_back": ("dx_through_mu", "dx_through_var")}
    return tuple(step for line in lines for step in spoiled.get(line, (line,)))


def run(lines: dict[str, Line], inputs: SimpleNamespace) -> Any:
    """The inputs, and the value of each line after them."""
    v = SimpleNamespace(**vars(inputs))
    for name, line in lines.items():
        setattr(v, name, line(v))
    return v
