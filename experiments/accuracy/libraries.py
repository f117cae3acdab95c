"""The libraries that are compared: each makes one training step of batch norm, from fresh statistics.

All take channels-last arrays, and have their own layout inside.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bnderiv
from experiments.accuracy.cases import EPS, Arrays

Library = Callable[[Arrays], Arrays]  # x, gamma, beta, mask, dy -> y, dx, dgamma, dbeta, mean, var (running)


class Cannot(Exception):
    """The library does not take this input."""


def by_jax(forward: Callable[..., Any]) -> Library:
    """`forward(x, gamma, beta, mask) -> y, (running mean, running var)` under jit, with its vjp."""

    @jax.jit
    def step(x, gamma, beta, mask, dy):
        y, pull_back, running = jax.vjp(lambda *a: forward(*a, mask), x, gamma, beta, has_aux=True)
        return (y, *pull_back(dy), *running)

    def compute(arrays: Arrays) -> Arrays:
        with jax.enable_x64(arrays["x"].dtype.itemsize == 8):
            results = step(*(arrays.get(name) for name in ("x", "gamma", "beta", "mask", "dy")))
            return dict(zip(("y", "dx", "dgamma", "dbeta", "mean", "var"), map(np.asarray, results), strict=True))

    return compute


def bnderiv_like(package: Any) -> Library:
    def forward(x, gamma, beta, mask):
        y, stats = package.batch_norm(x, gamma, beta, eps=EPS, where=mask)
        running = package.init_running_stats(x.shape[-1], stats.mean.dtype)
        running = package.update_running_stats(running, jax.lax.stop_gradient(stats))
        return y, (running.mean, running.var)

    return by_jax(forward)


def flax(use_fast_variance: bool) -> Library:
    peer = importlib.import_module("experiments.benchmark.flax_peer")

    def forward(x, gamma, beta, mask):
        options = {"epsilon": EPS, "use_fast_variance": use_fast_variance}
        y, new = peer.batch_norm(x, gamma, beta, mask=mask, **options)
        return y, (new["batch_stats"]["mean"], new["batch_stats"]["var"])

    return by_jax(forward)


def equinox() -> Library:
    eqx = importlib.import_module("equinox")

    def forward(x, gamma, beta, mask):
        if mask is not None:
            raise Cannot("no mask")
        # "ema" is the default mode, which warns when it is not named. In a first step it takes the batch's statistics.
        make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
        layer, state = make(x.shape[-1], "batch", eps=EPS, dtype=x.dtype, mode="ema")
        layer = eqx.tree_at(lambda a: (a.weight, a.bias), layer, (gamma, beta))
        over_batch = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, state = over_batch(jnp.moveaxis(x, -1, 1), state)
        return jnp.moveaxis(y, 1, -1), state.get(layer.ema_state_index)

    return by_jax(forward)


def haiku() -> Library:
    hk = importlib.import_module("haiku")

    def forward(x, gamma, beta, mask):
        if mask is not None:
            raise Cannot("no mask")
        transformed = hk.transform_with_state(
            lambda x: hk.BatchNorm(True, True, decay_rate=0.9, eps=EPS)(x, is_training=True)
        )
        params, state = transformed.init(None, x)
        vectors = {"scale": gamma, "offset": beta}
        params = {room: {name: vectors[name].reshape(a.shape) for name, a in p.items()} for room, p in params.items()}
        y, state = transformed.apply(params, state, None, x)
        return y, tuple(state[f"batch_norm/~/{name}_ema"]["average"].reshape(-1) for name in ("mean", "var"))

    return by_jax(forward)


def pytorch() -> Library:
    torch = importlib.import_module("torch")

    def tensor(a: np.ndarray) -> Any:
        exact = np.array(a.astype(np.float32) if a.dtype.itemsize == 2 else a)  # its NumPy has no bfloat16
        return torch.from_numpy(exact).to(getattr(torch, a.dtype.name))

    def array(t: Any) -> np.ndarray:
        return (t.detach().float() if t.element_size() == 2 else t.detach()).numpy()

    def compute(arrays: Arrays) -> Arrays:
        if "mask" in arrays:
            raise Cannot("no mask")
        x, gamma, beta, dy = (tensor(arrays[name]) for name in ("x", "gamma", "beta", "dy"))
        x, dy = (t.movedim(-1, 1).contiguous() for t in (x, dy))
        leaves = [t.requires_grad_() for t in (x, gamma, beta)]
        running = torch.zeros_like(gamma), torch.ones_like(gamma)
        y = torch.nn.functional.batch_norm(x, *running, gamma, beta, training=True, eps=EPS)
        y.backward(dy)
        y, dx = (array(t.movedim(1, -1)) for t in (y, x.grad))
        dgamma, dbeta = (array(leaf.grad) for leaf in leaves[1:])
        return {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta, "mean": array(running[0]), "var": array(running[1])}

    return compute


MAKERS: dict[str, Callable[[], Library]] = {
    "bnderiv": partial(bnderiv_like, bnderiv),
    "plain jnp": partial(bnderiv_like, bnderiv.reference),
    "Flax": partial(flax, True),
    "Flax, two-pass": partial(flax, False),
    "Equinox": equinox,
    "Haiku": haiku,
    "PyTorch": pytorch,
}


def installed_libraries() -> tuple[dict[str, Library], list[str]]:
    libraries, absent = {}, []
    for name, make in MAKERS.items():
        try:
            libraries[name] = make()
        except ImportError:
            absent.append(name)
    return libraries, absent
