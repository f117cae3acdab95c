"""What people get wrong in batch norm: wrong lines of the derivation.

`RIGHT` is the derivation in NumPy, one line for each step (derivation.md, N1–N11). A slip replaces some of the lines,
and the later steps follow from it. So a slip is recognized in the step where it was made and in every later one.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

Line = Callable[[Any], Any]

# v.sum() sums over the elements that share statistics, v.total() over the v.M of them that count, and v.share() is 0
# for the others. v.to_parameters() sums over those that share γ and β, which in batch norm are the same. v.N is the
# number of examples.
RIGHT: dict[str, Line] = {
    "m": lambda v: v.M,  # divisor of the statistics
    "m_back": lambda v: v.m,  # divisor of the second and third part
    "mu": lambda v: v.total(v.x) / v.m,
    "var": lambda v: v.total((v.x - v.mu) ** 2) / v.m,
    "inv_std": lambda v: 1 / np.sqrt(v.var + v.eps),
    "x_hat": lambda v: (v.x - v.mu) * v.inv_std,
    "y": lambda v: v.gamma * v.x_hat + v.beta,
    "d_gamma": lambda v: v.to_parameters(v.dy * v.x_hat),
    "d_beta": lambda v: v.to_parameters(v.dy),
    "d_x_hat": lambda v: v.gamma * v.dy,
    "d_var": lambda v: -0.5 * v.inv_std**3 * v.sum(v.d_x_hat * (v.x - v.mu)),
    "d_eps": lambda v: v.d_var.sum(),
    "d_mu": lambda v: -v.inv_std * v.sum(v.d_x_hat),
    "d_var_total": lambda v: v.d_var + v.v_bar,
    "d_mu_total": lambda v: v.d_mu + v.m_bar,
    "dx_through_x_hat": lambda v: v.inv_std * v.d_x_hat,
    "dx_through_mu": lambda v: v.share(v.d_mu_total / v.m_back + 0 * v.x),
    "dx_through_var": lambda v: v.share(v.d_var_total * 2 / v.m_back * (v.x - v.mu)),
    "dx": lambda v: v.dx_through_x_hat + v.dx_through_mu + v.dx_through_var,
}

SLIPS: list[tuple[str, dict[str, Line]]] = [
    ("a missing 1/m: the sum for μ is not divided by m = {M}", {"mu": lambda v: v.total(v.x)}),
    ("a missing 1/m: the sum for σ² is not divided by m = {M}", {"var": lambda v: v.total((v.x - v.mu) ** 2)}),
    (
        "wrong m: the statistics are divided by N = {N}, must be N·H·W = {M}",
        {"m": lambda v: v.N, "m_back": lambda v: v.M},
    ),
    ("wrong m: μ is divided by N = {N}, must be N·H·W = {M}", {"mu": lambda v: v.total(v.x) / v.N}),
    ("wrong m: σ² is divided by N = {N}, must be N·H·W = {M}", {"var": lambda v: v.total((v.x - v.mu) ** 2) / v.N}),
    ("wrong m: everything is divided by N = {N}, must be N·H·W = {M}", {"m": lambda v: v.N}),
    (
        "the unbiased variance, divided by m − 1 = {less}; a norm divides by the biased one, m = {M}",
        {"var": lambda v: v.total((v.x - v.mu) ** 2) / (v.M - 1)},
    ),
    ("the standard deviation in place of the variance", {"var": lambda v: np.sqrt(v.total((v.x - v.mu) ** 2) / v.m)}),
    ("the mean of x² in place of the variance: μ² is not subtracted", {"var": lambda v: v.total(v.x**2) / v.m}),
    (
        "ε is outside of the root, 1/(√σ² + ε); it belongs inside, 1/√(σ² + ε)",
        {"inv_std": lambda v: 1 / (np.sqrt(v.var) + v.eps)},
    ),
    ("ε is missing: 1/√σ² in place of 1/√(σ² + ε)", {"inv_std": lambda v: 1 / np.sqrt(v.var)}),
    ("ε is squared: 1/√(σ² + ε²) in place of 1/√(σ² + ε)", {"inv_std": lambda v: 1 / np.sqrt(v.var + v.eps**2)}),
    *(
        (f"another ε: {other:g} in place of {{eps:g}}", {"inv_std": lambda v, other=other: 1 / np.sqrt(v.var + other)})
        for other in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12)
    ),
    ("the root is missing: 1/(σ² + ε) in place of 1/√(σ² + ε)", {"inv_std": lambda v: 1 / (v.var + v.eps)}),
    ("not inverted: √(σ² + ε) in place of 1/√(σ² + ε)", {"inv_std": lambda v: np.sqrt(v.var + v.eps)}),
    ("x for x̂: it is not normalized at all", {"x_hat": lambda v: v.x}),
    ("x̂ is not centered: μ is not subtracted", {"x_hat": lambda v: v.x * v.inv_std}),
    ("x̂ is centered, but not divided by √(σ² + ε)", {"x_hat": lambda v: v.x - v.mu}),
    ("a missing γ: y = x̂ + β", {"y": lambda v: v.x_hat + v.beta}),
    ("a missing β: y = γ x̂", {"y": lambda v: v.gamma * v.x_hat}),
    ("x for x̂: Σ δ x in place of Σ δ x̂", {"d_gamma": lambda v: v.to_parameters(v.dy * v.x)}),
    ("x − μ for x̂: a missing 1/√(σ² + ε)", {"d_gamma": lambda v: v.to_parameters(v.dy * (v.x - v.mu))}),
    ("y for x̂: Σ δ y in place of Σ δ x̂", {"d_gamma": lambda v: v.to_parameters(v.dy * v.y)}),
    ("exchanged: Σ δ is ∂J/∂β, ∂J/∂γ is Σ δ x̂", {"d_gamma": lambda v: v.to_parameters(v.dy)}),
    ("exchanged: Σ δ x̂ is ∂J/∂γ, ∂J/∂β is Σ δ", {"d_beta": lambda v: v.to_parameters(v.dy * v.x_hat)}),
    ("γ δ for δ: ∂J/∂γ has no γ in it", {"d_gamma": lambda v: v.to_parameters(v.gamma * v.dy * v.x_hat)}),
    ("γ δ for δ: ∂J/∂β has no γ in it", {"d_beta": lambda v: v.to_parameters(v.gamma * v.dy)}),
    ("a mean where a sum belongs: divided by m = {M}", {"d_gamma": lambda v: v.to_parameters(v.dy * v.x_hat) / v.M}),
    ("a mean where a sum belongs: divided by m = {M}", {"d_beta": lambda v: v.to_parameters(v.dy) / v.M}),
    ("a missing γ: ∂J/∂x̂ is γ δ, not δ", {"d_x_hat": lambda v: v.dy}),
    ("the sign of ∂J/∂σ²: the power −1/2 gives a minus", {"d_var": lambda v: -RIGHT["d_var"](v)}),
    ("a missing 1/2 in ∂J/∂σ²", {"d_var": lambda v: 2 * RIGHT["d_var"](v)}),
    ("the power −1/2 where −3/2 belongs in ∂J/∂σ²", {"d_var": lambda v: RIGHT["d_var"](v) / v.inv_std**2}),
    ("the power −1 where −3/2 belongs in ∂J/∂σ²", {"d_var": lambda v: RIGHT["d_var"](v) / v.inv_std}),
    ("x for x − μ in ∂J/∂σ²", {"d_var": lambda v: -0.5 * v.inv_std**3 * v.sum(v.d_x_hat * v.x)}),
    ("x̂ for x − μ in ∂J/∂σ²", {"d_var": lambda v: -0.5 * v.inv_std**3 * v.sum(v.d_x_hat * v.x_hat)}),
    ("the sign of ∂J/∂μ: ∂x̂/∂μ is −1/√(σ² + ε)", {"d_mu": lambda v: v.inv_std * v.sum(v.d_x_hat)}),
    ("a missing 1/√(σ² + ε) in ∂J/∂μ", {"d_mu": lambda v: -v.sum(v.d_x_hat)}),
    ("a missing 1/√(σ² + ε) in the part through x̂", {"dx_through_x_hat": lambda v: v.d_x_hat}),
    ("a missing 1/m in the part through μ", {"dx_through_mu": lambda v: v.share(v.d_mu_total + 0 * v.x)}),
    (
        "wrong m in the part through μ: N = {N}, must be N·H·W = {M}",
        {"dx_through_mu": lambda v: v.share(v.d_mu_total / v.N + 0 * v.x)},
    ),
    ("a missing 1/m in the part through σ²", {"dx_through_var": lambda v: v.share(v.d_var_total * 2 * (v.x - v.mu))}),
    (
        "wrong m in the part through σ²: N = {N}, must be N·H·W = {M}",
        {"dx_through_var": lambda v: v.share(v.d_var_total * 2 / v.N * (v.x - v.mu))},
    ),
    (
        "a missing 2 in the part through σ²",
        {"dx_through_var": lambda v: v.share(v.d_var_total / v.m_back * (v.x - v.mu))},
    ),
    ("x for x − μ in the part through σ²", {"dx_through_var": lambda v: v.share(v.d_var_total * 2 / v.m_back * v.x)}),
    (
        "x̂ for x − μ in the part through σ²",
        {"dx_through_var": lambda v: v.share(v.d_var_total * 2 / v.m_back * v.x_hat)},
    ),
    ("a missing 1/m in the parts through μ and σ²", {"m_back": lambda v: 1}),
    ("wrong m in the parts through μ and σ²: N = {N}, must be N·H·W = {M}", {"m_back": lambda v: v.N}),
    ("a missing term: the part through x̂", {"dx": lambda v: v.dx_through_mu + v.dx_through_var}),
    ("a missing term: the part through μ", {"dx": lambda v: v.dx_through_x_hat + v.dx_through_var}),
    ("a missing term: the part through σ²", {"dx": lambda v: v.dx_through_x_hat + v.dx_through_mu}),
    ("two missing terms: the parts through μ and σ²", {"dx": lambda v: v.dx_through_x_hat}),
    ("the sign of the part through x̂", {"dx": lambda v: RIGHT["dx"](v) - 2 * v.dx_through_x_hat}),
    ("the sign of the part through μ", {"dx": lambda v: RIGHT["dx"](v) - 2 * v.dx_through_mu}),
    ("the sign of the part through σ²", {"dx": lambda v: RIGHT["dx"](v) - 2 * v.dx_through_var}),
    ("a missing γ in ∂J/∂x", {"dx": lambda v: RIGHT["dx"](v) / v.gamma}),
    (
        "x for x̂ in ∂J/∂x: the third term is x̂ Σ (∂J/∂x̂ x̂)",
        {"dx": lambda v: v.dx_through_x_hat + v.dx_through_mu - v.inv_std / v.m_back * v.x * v.sum(v.d_x_hat * v.x)},
    ),
    (
        "x for x̂ in ∂J/∂x: in the factor before the third term's sum",
        {
            "dx": lambda v: (
                v.dx_through_x_hat + v.dx_through_mu - v.inv_std / v.m_back * v.x * v.sum(v.d_x_hat * v.x_hat)
            )
        },
    ),
    (
        "x for x̂ in ∂J/∂x: in the third term's sum",
        {
            "dx": lambda v: (
                v.dx_through_x_hat + v.dx_through_mu - v.inv_std / v.m_back * v.x_hat * v.sum(v.d_x_hat * v.x)
            )
        },
    ),
]

# What goes wrong with a mask alone. v.every is the number of elements, masked ones included.
MASK_SLIPS: list[tuple[str, dict[str, Line]]] = [
    (
        "the mask is forgotten: the statistics are taken over all elements",
        {"mu": lambda v: v.sum(v.x) / v.every, "var": lambda v: v.sum((v.x - v.mu) ** 2) / v.every},
    ),
    ("the mask is forgotten: μ is taken over all elements", {"mu": lambda v: v.sum(v.x) / v.every}),
    ("the mask is forgotten: σ² is taken over all elements", {"var": lambda v: v.sum((v.x - v.mu) ** 2) / v.every}),
    (
        "wrong n: the masked sums are divided by all {every} elements, must be by those that count",
        {"m": lambda v: v.every, "m_back": lambda v: v.M},
    ),
    ("wrong n: divided by all {every} elements, must be by those that count", {"m": lambda v: v.every}),
    (
        "masked elements are missing in Σ ∂J/∂x̂: their outputs use μ as well",
        {"d_mu": lambda v: -v.inv_std * v.total(v.d_x_hat)},
    ),
    (
        "masked elements are missing in Σ ∂J/∂x̂ (x − μ): their outputs use σ² as well",
        {"d_var": lambda v: -0.5 * v.inv_std**3 * v.total(v.d_x_hat * (v.x - v.mu))},
    ),
    (
        "masked elements are missing in both sums of the backward: their outputs use μ and σ² as well",
        {
            "d_mu": lambda v: -v.inv_std * v.total(v.d_x_hat),
            "d_var": lambda v: -0.5 * v.inv_std**3 * v.total(v.d_x_hat * (v.x - v.mu)),
        },
    ),
    (
        "masked elements are handed a share of ∂J/∂μ: they have no part in μ",
        {"dx_through_mu": lambda v: v.d_mu_total / v.m_back + 0 * v.x},
    ),
    (
        "masked elements are handed a share of ∂J/∂σ²: they have no part in σ²",
        {"dx_through_var": lambda v: v.d_var_total * 2 / v.m_back * (v.x - v.mu)},
    ),
    (
        "masked elements are handed shares of ∂J/∂μ and ∂J/∂σ²: they have no part in the statistics",
        {
            "dx_through_mu": lambda v: v.d_mu_total / v.m_back + 0 * v.x,
            "dx_through_var": lambda v: v.d_var_total * 2 / v.m_back * (v.x - v.mu),
        },
    ),
    ("wrong n: the parts through μ and σ² are divided by all {every} elements", {"m_back": lambda v: v.every}),
    (
        "a masked element has no gradient here: its own output depends on it, γ δ/√(σ² + ε)",
        {"dx": lambda v: v.share(RIGHT["dx"](v))},
    ),
]

# What goes wrong where the returned statistics are in the loss.
_RETURNED_SLIPS: list[tuple[str, dict[str, Line]]] = [
    ("v̄ is forgotten: what comes to the returned variance is added", {"d_var_total": lambda v: v.d_var}),
    ("m̄ is forgotten: what comes to the returned mean is added", {"d_mu_total": lambda v: v.d_mu}),
    (
        "m̄ and v̄ are forgotten: what comes to the returned statistics is added",
        {"d_var_total": lambda v: v.d_var, "d_mu_total": lambda v: v.d_mu},
    ),
]

# The terms of each sum, and whether it is a mean: to find sums over other axes.
_SUMMED: dict[str, tuple[Line, bool]] = {
    "mu": (lambda v: v.x, True),
    "var": (lambda v: (v.x - v.mu) ** 2, True),
    "d_gamma": (lambda v: v.dy * v.x_hat, False),
    "d_beta": (lambda v: v.dy, False),
    "d_var": (lambda v: -0.5 * v.inv_std**3 * v.d_x_hat * (v.x - v.mu), False),
    "d_mu": (lambda v: -v.inv_std * v.d_x_hat, False),
}


# Batch renormalization: what is added to RIGHT, in the order of its steps, and what people get wrong there.
_RENORM: dict[str, Line] = {
    **{name: RIGHT[name] for name in ("m", "m_back", "mu", "var", "inv_std", "x_hat")},
    "running_std": lambda v: np.sqrt(v.running_var + v.eps),
    "r": lambda v: np.clip(1 / (v.inv_std * v.running_std), 1 / v.r_max, v.r_max),
    "d": lambda v: np.clip((v.mu - v.running_mean) / v.running_std, -v.d_max, v.d_max),
    "corrected": lambda v: v.x_hat * v.r + v.d,
    "y": lambda v: v.gamma * v.corrected + v.beta,
    "d_gamma": lambda v: v.to_parameters(v.dy * v.corrected),
    "d_beta": RIGHT["d_beta"],
    "d_x_hat": lambda v: v.gamma * v.r * v.dy,
    **{name: RIGHT[name] for name in RIGHT if name.startswith(("d_var", "d_eps", "d_mu", "dx"))},
}
_RENORM_SLIPS: list[tuple[str, dict[str, Line]]] = [
    ("ε is missing in the running deviation: √σ² in place of √(σ² + ε)", {"running_std": lambda v: v.running_var**0.5}),
    ("the running variance in place of the deviation", {"running_std": lambda v: v.running_var + v.eps}),
    ("r is inverted: √(σ² + ε)/√(σ_B² + ε)", {"r": lambda v: np.clip(1 / _ratio(v), 1 / v.r_max, v.r_max)}),
    (
        "the ratio of the variances in place of the deviations",
        {"r": lambda v: np.clip(_ratio(v) ** 2, 1 / v.r_max, v.r_max)},
    ),
    ("r is not clipped", {"r": lambda v: _ratio(v)}),
    (
        "r is clipped to [−r_max, r_max]: its lower limit is 1/r_max",
        {"r": lambda v: np.clip(_ratio(v), -v.r_max, v.r_max)},
    ),
    ("the sign of d: it is (μ_B − μ)/√(σ² + ε)", {"d": lambda v: -_RENORM["d"](v)}),
    (
        "d by the batch's deviation in place of the running one",
        {"d": lambda v: np.clip((v.mu - v.running_mean) * v.inv_std, -v.d_max, v.d_max)},
    ),
    ("d is not clipped", {"d": lambda v: (v.mu - v.running_mean) / v.running_std}),
    ("r is missing: x̂ + d", {"corrected": lambda v: v.x_hat + v.d}),
    ("d is missing: x̂ r", {"corrected": lambda v: v.x_hat * v.r}),
    ("d inside of the product: (x̂ + d) r", {"corrected": lambda v: (v.x_hat + v.d) * v.r}),
    ("d without γ: γ x̂ r + d + β", {"y": lambda v: v.gamma * v.x_hat * v.r + v.d + v.beta}),
    ("a missing γ: y = x̂ r + d + β", {"y": lambda v: v.corrected + v.beta}),
    ("a missing β: y = γ (x̂ r + d)", {"y": lambda v: v.gamma * v.corrected}),
    ("x̂ for x̂ r + d: Σ δ x̂ is batch norm's", {"d_gamma": lambda v: v.to_parameters(v.dy * v.x_hat)}),
    ("a missing d: Σ δ x̂ r in place of Σ δ (x̂ r + d)", {"d_gamma": lambda v: v.to_parameters(v.dy * v.x_hat * v.r)}),
    ("a missing r: ∂J/∂x̂ is γ r δ, not γ δ", {"d_x_hat": lambda v: v.gamma * v.dy}),
    ("r is differentiated: on the way back it is a constant", {"d_var": lambda v: _d_var_through_r(v)}),
    ("d is differentiated: on the way back it is a constant", {"d_mu": lambda v: _d_mu_through_d(v)}),
    (
        "r and d are differentiated: on the way back they are constants",
        {"d_var": lambda v: _d_var_through_r(v), "d_mu": lambda v: _d_mu_through_d(v)},
    ),
]


def _ratio(v: Any) -> Any:
    return 1 / (v.inv_std * v.running_std)


def _d_var_through_r(v: Any) -> Any:
    free = v.r == _ratio(v)  # where r is not clipped
    return _RENORM["d_var"](v) + 0.5 * v.inv_std**2 * free * v.sum(v.d_x_hat * v.x_hat)


def _d_mu_through_d(v: Any) -> Any:
    free = v.d == (v.mu - v.running_mean) / v.running_std
    return _RENORM["d_mu"](v) + free / v.running_std * v.sum(v.gamma * v.dy)


def of_batch_norm_relu(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`, with the slips of the ReLU behind it, and of a residual z."""
    y, z, dy = steps.y, steps.residual, steps.dy
    total = "y" if z is None else "y + z"
    others = {"x": steps.x, "x̂": steps.x_hat, "δ_a": dy} | ({} if z is None else {"y": y, "z": z})
    masked = ("d_y",) if z is None else ("d_y", "d_residual")
    for step in masked:
        for name, array in others.items():
            sentence = f"the mask of the wrong array: [{name} > 0] in place of [{total} > 0]"
            yield step, sentence, np.where(array > 0, dy, 0)
        yield step, f"no mask: δ_a in place of δ_a [{total} > 0]", dy
    if z is not None:
        after = np.where(y > 0, y, 0)
        yield "total", "the residual is forgotten", y
        yield "a", "the residual is forgotten: max(y, 0) in place of max(y + z, 0)", after
        yield "a", "the residual is added after the ReLU: max(y, 0) + z in place of max(y + z, 0)", after + z
        sentence = "the gradient of the sum goes to z unchanged: no γ/√(σ² + ε) belongs in it"
        yield "d_residual", sentence, steps.dx_through_x_hat
    yield from of_batch_norm(steps)


def of_batch_norm_graph(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`, with the slips of single nodes."""
    yield "std", "the root is missing: σ² + ε in place of √(σ² + ε)", steps.var + steps.eps
    for step in ("d_c", "dx_through_c"):
        yield step, "a missing path: c̄ is r x̂̄ + 2 c q̄, here 2 c q̄ is missing", steps.d_c_through_x_hat
        yield step, "a missing path: c̄ is r x̂̄ + 2 c q̄, here r x̂̄ is missing", steps.d_c_through_q
    yield from of_batch_norm(steps)


def of_batch_norm(steps: Any) -> Iterator[Any]:
    """(step, sentence, the value it would have given) for every slip and every step after it.

    A fourth entry names the steps where the slip was made: if those are right, it was not.

    Args:
      steps: the right steps, or any object with the inputs and options of `BatchNorm`.
    """
    inputs = inputs_of(steps)
    if inputs is None:
        return
    right = run(RIGHT, inputs)
    for step, (term, mean) in _SUMMED.items():
        if mean and inputs.masked:
            continue  # the mean of what counts is no sum over other axes
        yield from _other_axes(step, term(right), inputs.others, mean)
    yield from followed(RIGHT, _spoken(inputs), inputs, _by_channel(inputs))


def inputs_of(steps: Any) -> SimpleNamespace | None:
    """What the lines start from, of the rank of x; None for many layers at once, by vmap."""
    x, axis = steps.x, steps.channel_axis % steps.x.ndim
    if steps.gamma.shape != (x.shape[axis],):
        return None
    others = tuple(a for a in range(x.ndim) if a != axis)
    every = math.prod(x.shape[a] for a in others)
    where, m_bar, v_bar = (getattr(steps, name, None) for name in ("where", "m_bar", "v_bar"))
    counts = None
    if where is not None:
        where = np.broadcast_to(where.astype(bool), x.shape)
        x = np.where(where | np.isfinite(x), x, 0)
        counts = np.maximum(where.sum(others, keepdims=True), 1)
    return SimpleNamespace(
        x=x,
        gamma=np.expand_dims(steps.gamma, others),
        beta=np.expand_dims(steps.beta, others),
        dy=getattr(steps, "d_y", steps.dy),  # with a ReLU: δ_y, behind it
        eps=steps.eps,
        m_bar=0.0 if m_bar is None else np.expand_dims(m_bar, others),
        v_bar=0.0 if v_bar is None else np.expand_dims(v_bar, others),
        returned=m_bar is not None,
        masked=where is not None,
        M=every if counts is None else counts,
        every=every,
        N=x.shape[others[0]],
        others=others,
        sum=lambda a: a.sum(others, keepdims=True),
        total=lambda a: (a if where is None else np.where(where, a, 0)).sum(others, keepdims=True),
        share=lambda a: a if where is None else np.where(where, a, 0),
        to_parameters=lambda a: a.sum(others, keepdims=True),
    )


def _spoken(inputs: SimpleNamespace) -> list[tuple[str, dict[str, Line]]]:
    known = SLIPS if inputs.masked or inputs.N != inputs.M else [slip for slip in SLIPS if "wrong m" not in slip[0]]
    own = [*(MASK_SLIPS if inputs.masked else ()), *(_RETURNED_SLIPS if inputs.returned else ())]
    return [(spoken(sentence, inputs), lines) for sentence, lines in (*own, *known)]


def _by_channel(inputs: SimpleNamespace) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda _, a: a if a.shape in (inputs.x.shape, ()) else a.reshape(-1)


def of_batch_renorm(steps: Any) -> Iterator[Any]:
    """As `of_batch_norm`; the batch's variance is a step of another name, as `var` is the running one."""
    inputs = inputs_of(steps)
    if inputs is None:
        return
    inputs.running_mean, inputs.running_var = (np.expand_dims(a, inputs.others) for a in (steps.mean, steps.var))
    inputs.r_max, inputs.d_max = steps.r_max, steps.d_max
    common = [slip for slip in _spoken(inputs) if not slip[1].keys() & {"y", "d_gamma", "d_x_hat"}]
    slips = [*_RENORM_SLIPS, *common]
    for step, sentence, value, *made_in in followed(_RENORM, slips, inputs, _by_channel(inputs)):
        names = [tuple(_RENAMED.get(name, name) for name in earlier) for earlier in made_in]
        yield _RENAMED.get(step, step), sentence, value, *names


_RENAMED = {"var": "batch_var"}


def spoken(sentence: str, inputs: SimpleNamespace) -> str:
    """The sentence of a slip with the numbers of this problem."""
    M, less = (inputs.M, inputs.M - 1) if isinstance(inputs.M, int) else ("n", "n − 1")  # n: those that count
    return sentence.format(
        M=M, N=inputs.N, less=less, every=vars(inputs).get("every", M), eps=float(np.max(inputs.eps))
    )


def followed(
    right_lines: dict[str, Line],
    slips: list[tuple[str, dict[str, Line]]],
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


def _other_axes(step: str, terms: np.ndarray, others: tuple[int, ...], mean: bool) -> Iterator[tuple[str, str, Any]]:
    for length in range(terms.ndim + 1):
        for axes in itertools.combinations(range(terms.ndim), length):
            if axes != others:
                value = terms.mean(axes) if mean else terms.sum(axes)
                sentence = f"a sum over the wrong axes: over {axes}, must be over {others}, all but the channels'"
                yield step, sentence, value
                yield step, sentence, terms.mean(axes, keepdims=True) if mean else terms.sum(axes, keepdims=True)
