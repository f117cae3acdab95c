"""The lines of a norm's derivation, and the slips that people make in them.

`RIGHT` is the derivation in NumPy, one line for each step (derivation.md, N1–N11). A slip replaces some of the lines,
and the later steps follow from it. So a slip is recognized in the step where it was made and in every later one.
"""

import numpy as np

from bnderiv.normalization.slips.following import Line, Slip

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

SLIPS: list[Slip] = [
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
MASK_SLIPS: list[Slip] = [
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
RETURNED_SLIPS: list[Slip] = [
    ("v̄ is forgotten: what comes to the returned variance is added", {"d_var_total": lambda v: v.d_var}),
    ("m̄ is forgotten: what comes to the returned mean is added", {"d_mu_total": lambda v: v.d_mu}),
    (
        "m̄ and v̄ are forgotten: what comes to the returned statistics is added",
        {"d_var_total": lambda v: v.d_var, "d_mu_total": lambda v: v.d_mu},
    ),
]
