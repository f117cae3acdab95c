"""`python -m bnderiv.check module:function --reference module:function --shapes "(8,3),(3,)"`: a table, exit 0 or 1."""

import argparse
import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnderiv.check.compare import MODES, compare
from bnderiv.check.deliberate import EXPECTED

_ALIASES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64", "i32": "int32", "i64": "int64"}


class _Argument(NamedTuple):
    """One item of `--shapes`."""

    shape: tuple[int, ...]
    dtype: str | None = None
    low: float | None = None
    high: float | None = None
    positive: bool = False


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
        argnums = None if options.argnums is None else _literal("--argnums", f"({options.argnums},)", tuple)
        report = compare(
            f, reference, *args, key=jax.random.key(options.seed), modes=modes, tolerances=tolerances,
            argnums=argnums, expected=options.expected,
        )  # fmt: skip
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
    parser.add_argument(
        "function", metavar="module:function", help="the function with the gradient rule; or path/to/file.py:function"
    )
    parser.add_argument(
        "--reference", metavar="module:function", help="the same function for autodiff (default: finite differences)"
    )
    parser.add_argument(
        "--shapes",
        required=True,
        help='of the arguments: "(8,3),(3,)"; with a dtype: "bf16(8,3),int32(8,high=10)"; of positive numbers: '
        '"positive(3,)"; between bounds: "uniform(3,low=0,high=1)"; both: "positive(3,dtype=f16)"',
    )
    parser.add_argument("--dtype", default="float32", help="of the arguments without one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the arguments and cotangents (default: %(default)s)")
    parser.add_argument(
        "--kwargs", default="{}", help="keywords of both functions, as a Python dict: \"{'eps': 1e-3}\""
    )
    parser.add_argument("--modes", help=f"comma-separated, of {', '.join(MODES)} (default: all that apply)")
    parser.add_argument("--argnums", help="positions of the arguments to differentiate, such as 0,2 (default: all)")
    parser.add_argument(
        "--expected", choices=EXPECTED, help="what the rule returns on purpose in place of the gradient"
    )
    parser.add_argument("--tolerances", default="{}", help="by mode, as a Python dict: \"{'gradient': 1e-6}\"")
    return parser


def _function(what: str, name: str) -> Callable:
    module, colon, attribute = name.rpartition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{what} must be module:function or file.py:function, got {name!r}")
    found: Any = _module(what, module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what}: {module!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{what} must be callable, {name} is a {type(found).__name__}")
    return found


def _module(what: str, name: str) -> Any:
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"{what}: cannot import {name!r}: {error}") from None
    if not os.path.isfile(name):
        raise ValueError(f"{what}: there is no file {name!r}")
    sys.path.insert(0, os.path.dirname(os.path.abspath(name)))  # as Python does for a script
    title = os.path.basename(name).removesuffix(".py")
    if title not in sys.modules:
        spec: Any = importlib.util.spec_from_file_location(title, name)
        sys.modules[title] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[title])
    return sys.modules[title]


def _shapes(text: str) -> list[_Argument]:
    """ "(8,3),int32(8,high=5)" as arguments."""
    wrong = ValueError(
        f'--shapes must look like "(8,3),(3,)", "bf16(8,3),int32(8,high=5)" or "positive(3),uniform(3,low=0,high=1)", '
        f"got {text!r}"
    )
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
        items = tree.elts if isinstance(tree, ast.List) else []
        arguments = [_argument(item) for item in items]
    except (SyntaxError, ValueError, TypeError):
        raise wrong from None
    if not arguments:
        raise wrong
    return arguments


def _argument(item: Any) -> _Argument:
    name, given = "", {}
    if isinstance(item, ast.Call) and isinstance(item.func, ast.Name):
        name = item.func.id
        for keyword in item.keywords:
            value = keyword.value
            given[keyword.arg] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        single = len(item.args) == 1 and isinstance(item.args[0], ast.Tuple)
        item = item.args[0] if single else ast.Tuple(item.args, ast.Load())
    shape = ast.literal_eval(item)
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError
    if name == "positive":
        return _Argument(shape, positive=True, **given)
    if name == "uniform":
        return _Argument(shape, **{"low": 0.0, "high": 1.0, **given})
    return _Argument(shape, **({"dtype": name} if name else {}), **given)


def _dtype(name: str) -> np.dtype:
    try:
        return jnp.dtype(_ALIASES.get(name, name))
    except TypeError:
        raise ValueError(f"a dtype must be one such as float32 or bf16, got {name!r}") from None


def _draw(arguments: Sequence[_Argument], dtype: np.dtype, seed: int) -> list[Any]:
    """Standard normal numbers, integers from 0 to 2 (valid as labels of three classes), and booleans; or as bounded."""
    rng = np.random.default_rng(seed)
    arrays = []
    for argument in arguments:
        shape, low, high = argument.shape, argument.low, argument.high
        drawn = dtype if argument.dtype is None else _dtype(argument.dtype)
        inexact = jnp.issubdtype(drawn, jnp.inexact)
        if (jnp.finfo(drawn).bits if inexact else 8 * drawn.itemsize) == 64:
            jax.config.update("jax_enable_x64", True)
        if not inexact:
            start, stop = int(low or 0), 2 if drawn == jnp.bool_ else 3 if high is None else int(high)
            numbers = rng.integers(start, stop, shape)
        elif argument.positive:
            numbers = 2.0 ** rng.uniform(-2, 2, shape)
        elif low is not None or high is not None:
            numbers = rng.uniform(-1.0 if low is None else low, 1.0 if high is None else high, shape)
        else:
            numbers = rng.standard_normal(shape)
            if jnp.issubdtype(drawn, jnp.complexfloating):
                numbers = numbers + 1j * rng.standard_normal(shape)
        arrays.append(jnp.asarray(np.asarray(numbers).astype(drawn)))
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
