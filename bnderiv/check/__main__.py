"""`python -m bnderiv.check module:function --reference module:function --shapes "(8,3),(3,)"`: a table, exit 0 or 1."""

import argparse
import ast
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check.compare import MODES, compare


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if every check passed and 1 if one failed; argparse exits with 2 on invalid arguments."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        f = _function("the function", options.function)
        reference = None if options.reference is None else _function("--reference", options.reference)
        args = _draw(_shapes(options.shapes), _dtype(options.dtype), options.seed)
        keywords = _literal("--kwargs", options.kwargs, dict)
        tolerances = _literal("--tolerances", options.tolerances, dict)
        modes = MODES if options.modes is None else tuple(mode.strip() for mode in options.modes.split(","))
        if keywords:
            f, reference = partial(f, **keywords), None if reference is None else partial(reference, **keywords)
        report = compare(f, reference, *args, key=jax.random.key(options.seed), modes=modes, tolerances=tolerances)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    print(report)
    return 0 if report.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bnderiv.check",
        description="Check a hand-derived gradient against autodiff of a reference, float64 and finite differences.",
        epilog='Example: %(prog)s bnderiv:dense --reference bnderiv.reference:dense --shapes "(8,3),(3,4),(4,)"',
    )
    parser.add_argument("function", metavar="module:function", help="the function with the gradient rule")
    parser.add_argument(
        "--reference", metavar="module:function", help="the same function for autodiff (default: finite differences)"
    )
    parser.add_argument(
        "--shapes", required=True, help='of the arguments: "(8,3),(3,)"; with a dtype: "(8,3),int32(8,)"'
    )
    parser.add_argument("--dtype", default="float32", help="of the arguments without one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the arguments and cotangents (default: %(default)s)")
    parser.add_argument(
        "--kwargs", default="{}", help="keywords of both functions, as a Python dict: \"{'eps': 1e-3}\""
    )
    parser.add_argument("--modes", help=f"comma-separated, of {', '.join(MODES)} (default: all that apply)")
    parser.add_argument("--tolerances", default="{}", help="by mode, as a Python dict: \"{'gradient': 1e-6}\"")
    return parser


def _function(what: str, name: str) -> Callable:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{what} must be module:function, got {name!r}")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what}: cannot import {module!r}: {error}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what}: {module!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{what} must be callable, {name} is a {type(found).__name__}")
    return found


def _shapes(text: str) -> list[tuple[str | None, tuple[int, ...]]]:
    """ "(8,3),int32(8,)" as [(None, (8, 3)), ("int32", (8,))]."""
    wrong = ValueError(f'--shapes must look like "(8,3),(3,)" or "(8,3),int32(8,)", got {text!r}')
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        items = tree.elts if isinstance(tree, ast.List) else []
    except SyntaxError:
        raise wrong from None
    shapes = []
    for item in items:
        dtype = None
        if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and not item.keywords:
            dtype, item = item.func.id, ast.Tuple(item.args, ast.Load())
        try:
            shape = ast.literal_eval(item)
        except ValueError:
            raise wrong from None
        shape = (shape,) if isinstance(shape, int) else shape
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise wrong
        shapes.append((dtype, shape))
    if not shapes:
        raise wrong
    return shapes


def _dtype(name: str) -> np.dtype:
    try:
        return jnp.dtype(name)
    except TypeError:
        raise ValueError(f"--dtype must be a dtype such as float32, got {name!r}") from None


def _draw(shapes: Sequence[tuple[str | None, tuple[int, ...]]], dtype: np.dtype, seed: int) -> list[Any]:
    """Standard normal numbers, integers from 0 to 2 (valid as labels of three classes), and booleans."""
    rng = np.random.default_rng(seed)
    arrays = []
    for name, shape in shapes:
        drawn = dtype if name is None else _dtype(name)
        inexact = jnp.issubdtype(drawn, jnp.inexact)
        if (jnp.finfo(drawn).bits if inexact else 8 * drawn.itemsize) == 64:
            jax.config.update("jax_enable_x64", True)
        if jnp.issubdtype(drawn, jnp.complexfloating):
            arrays.append(jnp.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape), drawn))
        elif inexact:
            arrays.append(jnp.asarray(rng.standard_normal(shape), drawn))
        else:
            arrays.append(jnp.asarray(rng.integers(0, 2 if drawn == jnp.bool_ else 3, shape), drawn))
    return arrays


def _literal(what: str, text: str, kind: type) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, kind):
        raise ValueError(f"{what} must be a Python {kind.__name__}, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
