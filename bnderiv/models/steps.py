"""LeNet-5, the whole chain by hand: forward, then every δ back to the images, without automatic differentiation.

The layers have the models' numbers: 1 and 2 are the convolutions (each with its pool), 3 and 4 the hidden fully
connected layers, 5 the output. Every line is one step of a room's derivation.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bnderiv import _checks
from bnderiv.activation import steps as activation
from bnderiv.convolution import steps as convolution
from bnderiv.linear import steps as linear
from bnderiv.loss import steps as losses
from bnderiv.normalization import steps as normalization
from bnderiv.pooling import steps as pooling
from bnderiv.steps.table import INPUT, arrays, derivation, gather

Array = jax.Array
Maybe = jax.Array | None
Tree = dict[str, Any]


@derivation
class LeNet5(NamedTuple):
    """The steps of `lenet5`, in the order of the derivation: forward 1 to 5, backward 5 to 1.

    Steps that a variant does not have (batch norm or biases, the winners of max pooling) are None.
    """

    params: Annotated[Tree, "w, W, b, γ, β", "a tree", INPUT, "the parameters"]
    running: Annotated[Tree, "", "a tree", INPUT, "running statistics before this batch, the argument `state`"]
    x: Annotated[Array, "a⁽⁰⁾", "(N, M₀, N₀, C)", INPUT, "images"]
    labels: Annotated[Array, "", "(N,), integers", INPUT, "class of each image"]
    config: Annotated[Any, "the network"]
    loss_name: Annotated[str, "which loss, the argument `loss`"]
    z1: Annotated[Array, "z⁽¹⁾ = w⁽¹⁾ ⋆ a⁽⁰⁾", "(N, M₁, N₁, 6)", "(C6)", "weighted sums, + b without batch norm"]
    mu1: Annotated[Maybe, "μ⁽¹⁾", "(6,)", "(N1)", "mean of each channel"]
    var1: Annotated[Maybe, "σ²⁽¹⁾", "(6,)", "(N2)", "biased variance of each channel"]
    inv_std1: Annotated[Maybe, "r⁽¹⁾", "(6,)", "(N3)", "inverse deviation"]
    x_hat1: Annotated[Maybe, "ẑ⁽¹⁾", "as z1", "(N3)", "normalized"]
    y1: Annotated[Maybe, "y⁽¹⁾ = γ ẑ⁽¹⁾ + β", "as z1", "(N4)", "scaled and shifted"]
    a1: Annotated[Array, "a⁽¹⁾ = τ(y⁽¹⁾)", "as z1", "(A2)–(A6)", "activation, of z without batch norm"]
    winner1: Annotated[Maybe, "κ⁽¹⁾", "as p1, integers", "(P7)", "number of the cell that won; max pool only"]
    p1: Annotated[Array, "p⁽¹⁾ = pool a⁽¹⁾", "(N, M₁/2, N₁/2, 6)", "(P1), (P7)", "pooled"]
    z2: Annotated[Array, "z⁽²⁾ = w⁽²⁾ ⋆ p⁽¹⁾", "(N, M₂, N₂, 16)", "(C6)", "weighted sums, + b without batch norm"]
    mu2: Annotated[Maybe, "μ⁽²⁾", "(16,)", "(N1)", "mean of each channel"]
    var2: Annotated[Maybe, "σ²⁽²⁾", "(16,)", "(N2)", "biased variance of each channel"]
    inv_std2: Annotated[Maybe, "r⁽²⁾", "(16,)", "(N3)", "inverse deviation"]
    x_hat2: Annotated[Maybe, "ẑ⁽²⁾", "as z2", "(N3)", "normalized"]
    y2: Annotated[Maybe, "y⁽²⁾ = γ ẑ⁽²⁾ + β", "as z2", "(N4)", "scaled and shifted"]
    a2: Annotated[Array, "a⁽²⁾ = τ(y⁽²⁾)", "as z2", "(A2)–(A6)", "activation, of z without batch norm"]
    winner2: Annotated[Maybe, "κ⁽²⁾", "as p2, integers", "(P7)", "number of the cell that won; max pool only"]
    p2: Annotated[Array, "p⁽²⁾ = pool a⁽²⁾", "(N, M₂/2, N₂/2, 16)", "(P1), (P7)", "pooled"]
    f: Annotated[Array, "f = flatten p⁽²⁾", "(N, D)", "(L5)", "the maps of each example as one row"]
    z3: Annotated[Array, "z⁽³⁾ = f W⁽³⁾", "(N, 120)", "(L1)", "weighted sums, + b without batch norm"]
    mu3: Annotated[Maybe, "μ⁽³⁾", "(120,)", "(N1)", "mean of each channel"]
    var3: Annotated[Maybe, "σ²⁽³⁾", "(120,)", "(N2)", "biased variance of each channel"]
    inv_std3: Annotated[Maybe, "r⁽³⁾", "(120,)", "(N3)", "inverse deviation"]
    x_hat3: Annotated[Maybe, "ẑ⁽³⁾", "as z3", "(N3)", "normalized"]
    y3: Annotated[Maybe, "y⁽³⁾ = γ ẑ⁽³⁾ + β", "as z3", "(N4)", "scaled and shifted"]
    a3: Annotated[Array, "a⁽³⁾ = τ(y⁽³⁾)", "as z3", "(A2)–(A6)", "activation, of z without batch norm"]
    z4: Annotated[Array, "z⁽⁴⁾ = a⁽³⁾ W⁽⁴⁾", "(N, 84)", "(L1)", "weighted sums, + b without batch norm"]
    mu4: Annotated[Maybe, "μ⁽⁴⁾", "(84,)", "(N1)", "mean of each channel"]
    var4: Annotated[Maybe, "σ²⁽⁴⁾", "(84,)", "(N2)", "biased variance of each channel"]
    inv_std4: Annotated[Maybe, "r⁽⁴⁾", "(84,)", "(N3)", "inverse deviation"]
    x_hat4: Annotated[Maybe, "ẑ⁽⁴⁾", "as z4", "(N3)", "normalized"]
    y4: Annotated[Maybe, "y⁽⁴⁾ = γ ẑ⁽⁴⁾ + β", "as z4", "(N4)", "scaled and shifted"]
    a4: Annotated[Array, "a⁽⁴⁾ = τ(y⁽⁴⁾)", "as z4", "(A2)–(A6)", "activation, of z without batch norm"]
    z5: Annotated[Array, "z⁽⁵⁾ = a⁽⁴⁾ W⁽⁵⁾ + b⁽⁵⁾", "(N, K)", "(L1)", "logits"]
    a5: Annotated[Array, "a⁽⁵⁾ = softmax z⁽⁵⁾ or tanh z⁽⁵⁾", "(N, K)", "(A8), (A4)", "output: probabilities, or tanh"]
    targets: Annotated[Array, "y", "(N, K)", "(S10)", "one-hot code of the labels"]
    losses: Annotated[Array, "J_n", "(N,)", "(S9), (S1)", "loss of each example"]
    loss: Annotated[Array, "J = 1/N Σ_n J_n", "()", "", "their mean"]
    delta5: Annotated[
        Array,
        "δ⁽⁵⁾ = 1/N (a⁽⁵⁾ − y) [⊙ (1 − a⁽⁵⁾ ⊙ a⁽⁵⁾)]",
        "(N, K)",
        "(S10), (S3)",
        "the bracket for tanh; 1/N is the mean's",
    ]
    d_kernel5: Annotated[Array, "ΔW⁽⁵⁾ = (a⁽⁴⁾)ᵀ δ⁽⁵⁾", "(84, K)", "(L2)", "gradient of the output weights"]
    d_bias5: Annotated[Array, "Δb⁽⁵⁾ = Σ_n δ⁽⁵⁾", "(K,)", "(L4)", "gradient of the output bias"]
    d_a4: Annotated[Array, "∂J/∂a⁽⁴⁾ = δ⁽⁵⁾ (W⁽⁵⁾)ᵀ", "(N, 84)", "(L3)", "gradient w.r.t. the activation"]
    d_y4: Annotated[Maybe, "∂J/∂y⁽⁴⁾ = ∂J/∂a⁽⁴⁾ ⊙ τ'", "as z4", "(A1)", "through the activation"]
    d_gamma4: Annotated[Maybe, "∂J/∂γ⁽⁴⁾", "(84,)", "(N5)", "gradient of gamma"]
    d_beta4: Annotated[Maybe, "∂J/∂β⁽⁴⁾", "(84,)", "(N6)", "gradient of beta"]
    d_x_hat4: Annotated[Maybe, "∂J/∂ẑ⁽⁴⁾", "as z4", "(N7)", "gradient w.r.t. the normalized input"]
    d_var4: Annotated[Maybe, "∂J/∂σ²⁽⁴⁾", "(84,)", "(N8)", "gradient w.r.t. the variance"]
    d_mu4: Annotated[Maybe, "∂J/∂μ⁽⁴⁾", "(84,)", "(N10)", "gradient w.r.t. the mean"]
    delta4: Annotated[Array, "δ⁽⁴⁾ = ∂J/∂z⁽⁴⁾", "as z4", "(N11), (A1)", "through batch norm, or ∂J/∂a ⊙ τ' without it"]
    d_kernel4: Annotated[Array, "ΔW⁽⁴⁾ = a⁽³⁾ᵀ δ⁽⁴⁾", "(120, 84)", "(L2)", "gradient of the weights"]
    d_bias4: Annotated[Maybe, "Δb⁽⁴⁾ = Σ δ⁽⁴⁾", "(84,)", "(L4)", "gradient of the bias; none before batch norm (N20)"]
    d_a3: Annotated[Array, "∂J/∂a⁽³⁾ = δ⁽⁴⁾ (W⁽⁴⁾)ᵀ", "(N, 120)", "(L3)", "gradient w.r.t. the activation"]
    d_y3: Annotated[Maybe, "∂J/∂y⁽³⁾ = ∂J/∂a⁽³⁾ ⊙ τ'", "as z3", "(A1)", "through the activation"]
    d_gamma3: Annotated[Maybe, "∂J/∂γ⁽³⁾", "(120,)", "(N5)", "gradient of gamma"]
    d_beta3: Annotated[Maybe, "∂J/∂β⁽³⁾", "(120,)", "(N6)", "gradient of beta"]
    d_x_hat3: Annotated[Maybe, "∂J/∂ẑ⁽³⁾", "as z3", "(N7)", "gradient w.r.t. the normalized input"]
    d_var3: Annotated[Maybe, "∂J/∂σ²⁽³⁾", "(120,)", "(N8)", "gradient w.r.t. the variance"]
    d_mu3: Annotated[Maybe, "∂J/∂μ⁽³⁾", "(120,)", "(N10)", "gradient w.r.t. the mean"]
    delta3: Annotated[Array, "δ⁽³⁾ = ∂J/∂z⁽³⁾", "as z3", "(N11), (A1)", "through batch norm, or ∂J/∂a ⊙ τ' without it"]
    d_kernel3: Annotated[Array, "ΔW⁽³⁾ = fᵀ δ⁽³⁾", "(D, 120)", "(L2)", "gradient of the weights"]
    d_bias3: Annotated[Maybe, "Δb⁽³⁾ = Σ δ⁽³⁾", "(120,)", "(L4)", "gradient of the bias; none before batch norm (N20)"]
    d_f: Annotated[Array, "∂J/∂f = δ⁽³⁾ (W⁽³⁾)ᵀ", "(N, D)", "(L3)", "gradient w.r.t. the flattened maps"]
    d_p2: Annotated[Array, "∂J/∂p⁽²⁾", "(N, M₂/2, N₂/2, 16)", "(L5)", "the same, as maps again"]
    d_a2: Annotated[Array, "∂J/∂a⁽²⁾", "as z2", "(P4), (P10)", "through the pool"]
    d_y2: Annotated[Maybe, "∂J/∂y⁽²⁾ = ∂J/∂a⁽²⁾ ⊙ τ'", "as z2", "(A1)", "through the activation"]
    d_gamma2: Annotated[Maybe, "∂J/∂γ⁽²⁾", "(16,)", "(N5)", "gradient of gamma"]
    d_beta2: Annotated[Maybe, "∂J/∂β⁽²⁾", "(16,)", "(N6)", "gradient of beta"]
    d_x_hat2: Annotated[Maybe, "∂J/∂ẑ⁽²⁾", "as z2", "(N7)", "gradient w.r.t. the normalized input"]
    d_var2: Annotated[Maybe, "∂J/∂σ²⁽²⁾", "(16,)", "(N8)", "gradient w.r.t. the variance"]
    d_mu2: Annotated[Maybe, "∂J/∂μ⁽²⁾", "(16,)", "(N10)", "gradient w.r.t. the mean"]
    delta2: Annotated[Array, "δ⁽²⁾ = ∂J/∂z⁽²⁾", "as z2", "(N11), (A1)", "through batch norm, or ∂J/∂a ⊙ τ' without it"]
    d_kernel2: Annotated[Array, "ΔW⁽²⁾ = δ⁽²⁾ ⋆ p⁽¹⁾", "(5, 5, 6, 16)", "(C7)", "gradient of the weights"]
    d_bias2: Annotated[Maybe, "Δb⁽²⁾ = Σ δ⁽²⁾", "(16,)", "(C8)", "gradient of the bias; none before batch norm (N20)"]
    d_p1: Annotated[Array, "∂J/∂p⁽¹⁾ = turned w⁽²⁾ ⋆ δ⁽²⁾", "(N, M₁/2, N₁/2, 6)", "(C9)", "through the turned kernel"]
    d_a1: Annotated[Array, "∂J/∂a⁽¹⁾", "as z1", "(P4), (P10)", "through the pool"]
    d_y1: Annotated[Maybe, "∂J/∂y⁽¹⁾ = ∂J/∂a⁽¹⁾ ⊙ τ'", "as z1", "(A1)", "through the activation"]
    d_gamma1: Annotated[Maybe, "∂J/∂γ⁽¹⁾", "(6,)", "(N5)", "gradient of gamma"]
    d_beta1: Annotated[Maybe, "∂J/∂β⁽¹⁾", "(6,)", "(N6)", "gradient of beta"]
    d_x_hat1: Annotated[Maybe, "∂J/∂ẑ⁽¹⁾", "as z1", "(N7)", "gradient w.r.t. the normalized input"]
    d_var1: Annotated[Maybe, "∂J/∂σ²⁽¹⁾", "(6,)", "(N8)", "gradient w.r.t. the variance"]
    d_mu1: Annotated[Maybe, "∂J/∂μ⁽¹⁾", "(6,)", "(N10)", "gradient w.r.t. the mean"]
    delta1: Annotated[Array, "δ⁽¹⁾ = ∂J/∂z⁽¹⁾", "as z1", "(N11), (A1)", "through batch norm, or ∂J/∂a ⊙ τ' without it"]
    d_kernel1: Annotated[Array, "ΔW⁽¹⁾ = δ⁽¹⁾ ⋆ a⁽⁰⁾", "(5, 5, C, 6)", "(C7)", "gradient of the weights"]
    d_bias1: Annotated[Maybe, "Δb⁽¹⁾ = Σ δ⁽¹⁾", "(6,)", "(C8)", "gradient of the bias; none before batch norm (N20)"]
    dx: Annotated[Array, "∂J/∂a⁽⁰⁾ = turned w⁽¹⁾ ⋆ δ⁽¹⁾", "as x", "(C9)", "gradient of the images"]
    state: Annotated[Any, "", "as state", "(N27)", "running statistics after this batch"]

    @property
    def gradients(self) -> dict[str, dict[str, Array]]:
        """∂J/∂(every parameter), in the layout of `params`."""
        names = ("conv1", "conv2", "dense3", "dense4", "output")
        tree: dict[str, dict[str, Array]] = {}
        for i, name in enumerate(names, start=1):
            tree[name] = {"kernel": getattr(self, f"d_kernel{i}")}
            if getattr(self, f"d_bias{i}") is not None:
                tree[name]["bias"] = getattr(self, f"d_bias{i}")
            if i < 5 and getattr(self, f"d_gamma{i}") is not None:
                tree[f"bn{i}"] = {"gamma": getattr(self, f"d_gamma{i}"), "beta": getattr(self, f"d_beta{i}")}
        return tree


def lenet5(params: Tree, state: Tree, x: Any, labels: Any, config: Any, *, loss: str = "cross_entropy") -> LeNet5:
    """LeNet-5 in training, and the gradient of its mean loss with respect to every quantity in it.

    Args:
      params, state: as `bnderiv.models.lenet5.init` makes them.
      x: images, shape (N, rows, columns, channels) of `config.image_shape`, floating dtype; cast to `config.dtype`, and
        computed in float32 at least.
      labels: classes, shape (N,), integers in [0, K); another one makes its example's loss NaN.
      config: `bnderiv.models.lenet5.Config`, static under jit. `config.gradients` is ignored.
      loss: "cross_entropy" (softmax and −log s_y) or "squared_error" (tanh and ½‖y − a‖² with one-hot targets), the
        mean over the examples of either. Static.

    Returns:
      `LeNet5`; its `gradients` are in the layout of `params`, its `state` are the running statistics after this batch.

    Raises:
      TypeError: `x` has no floating dtype, or `labels` no integer one.
      ValueError: shapes that do not fit, or another `loss`.

    Example:
      >>> import bnderiv, jax, jax.numpy as jnp
      >>> config = bnderiv.models.lenet5.Config(classes=2)
      >>> params, state = bnderiv.models.lenet5.init(jax.random.key(0), config)
      >>> by_hand = jax.jit(bnderiv.steps.lenet5, static_argnames="config")
      >>> s = by_hand(params, state, jnp.ones((2, 28, 28, 1)), jnp.array([0, 1]), config=config)
      >>> s.gradients["conv1"]["kernel"].shape
      (5, 5, 1, 6)
    """
    if loss not in ("cross_entropy", "squared_error"):
        raise ValueError(f"loss must be 'cross_entropy' or 'squared_error', got {loss!r}")
    x = _checks.float_array("x", x)
    _checks.rank_is("x", x, 4, "(N, rows, columns, channels)")
    _checks.shape_is("x", x, (x.shape[0], *config.image_shape), "N images of config.image_shape")
    (x,) = arrays(x=x.astype(config.dtype))
    kernel, bias, gamma, beta = (_numbered(params, part, x.dtype) for part in ("kernel", "bias", "gamma", "beta"))
    options = {"eps": config.eps}
    pool = {"max": pooling.max_pool, "avg": pooling.avg_pool}[config.pool]
    activate = {"relu": activation.relu, "tanh": activation.tanh, "sigmoid": activation.sigmoid}[config.activation]
    labels = jnp.asarray(labels)
    s: dict[str, Any] = dict.fromkeys(LeNet5._fields)  # the steps by name; None where this network has no such step
    s.update(params=params, running=state, x=x, labels=labels, config=config, loss_name=loss)

    def convolve(i: int, a: Array, padding: int) -> Array:
        rim = [(padding, padding)] * 2
        z = lax.conv_general_dilated(a, kernel[i], (1, 1), rim, dimension_numbers=("NHWC", "HWIO", "NHWC"))  # (C6)
        return z if bias[i] is None else z + bias[i].reshape(1, 1, 1, -1)

    def normalize_and_activate(i: int) -> Array:
        y = s[f"z{i}"]
        if config.batch_norm:
            n = normalization.batch_norm(y, gamma[i], beta[i], y, **options)  # forward alone: δ is not known yet
            s.update({f"{name}{i}": getattr(n, name) for name in ("mu", "var", "inv_std", "x_hat", "y")})
            y = n.y
        forward = activate(y, y)
        return forward.s if config.activation == "sigmoid" else forward.a

    def pooled(i: int) -> Array:
        a = s[f"a{i}"]
        N, rows, columns, maps = a.shape
        forward = pool(a, 2, jnp.zeros((N, rows // 2, columns // 2, maps), a.dtype))
        s[f"winner{i}"] = getattr(forward, "winner", None)
        return forward.z

    # Forward.
    s["z1"] = convolve(1, x, config.padding)
    s["a1"] = normalize_and_activate(1)
    s["p1"] = pooled(1)
    s["z2"] = convolve(2, s["p1"], 0)
    s["a2"] = normalize_and_activate(2)
    s["p2"] = pooled(2)
    s["f"] = s["p2"].reshape(x.shape[0], -1)  # (L5)
    s["z3"] = linear.affine(s["f"], kernel[3], bias[3])  # (L1)
    s["a3"] = normalize_and_activate(3)
    s["z4"] = linear.affine(s["a3"], kernel[4], bias[4])  # (L1)
    s["a4"] = normalize_and_activate(4)
    s["z5"] = linear.affine(s["a4"], kernel[5], bias[5])  # (L1)

    # The output layer, both ways. J is a mean over the examples: each J_n has c = 1/N.
    c = jnp.full(x.shape[0], 1 / x.shape[0], x.dtype)
    if loss == "cross_entropy":
        out = losses.softmax_cross_entropy_with_integer_labels(s["z5"], labels, c)
        s["a5"], s["targets"], s["losses"] = out.s, out.one_hot, out.loss
        s["delta5"] = out.d_logits  # (S10)
    else:
        s["a5"], s["targets"] = jnp.tanh(s["z5"]), losses.code(labels, s["z5"])
        out = losses.squared_error(s["a5"], s["targets"], c)
        s["losses"] = out.loss
        s["delta5"] = activation.tanh(s["z5"], out.d_predictions).dx  # (S3)
    s["loss"] = s["losses"].mean()

    def dense_gradients(i: int, a: Array) -> Array:
        """ΔW and Δb of layer i from its input and δ; returns the gradient of the input."""
        delta = s[f"delta{i}"]
        s[f"d_kernel{i}"] = a.T @ delta  # (L2)
        s[f"d_bias{i}"] = None if bias[i] is None else delta.sum(0)  # (L4)
        return delta @ kernel[i].T  # (L3)

    def convolution_gradients(i: int, a: Array, padding: int) -> Array:
        """The same for a convolution."""
        back = convolution.conv2d(a, kernel[i], bias[i], s[f"delta{i}"], padding=padding)
        s[f"d_kernel{i}"] = back.d_kernel  # (C7)
        s[f"d_bias{i}"] = None if bias[i] is None else back.d_bias  # (C8)
        return back.dx  # (C9)

    def delta(i: int) -> Array:
        """δ of layer i: from the activation down, through its slope and through batch norm."""
        z, d_a = s[f"z{i}"], s[f"d_a{i}"]
        if not config.batch_norm:
            return activate(z, d_a).dx  # (A1)
        s[f"d_y{i}"] = activate(s[f"y{i}"], d_a).dx  # (A1)
        n = normalization.batch_norm(z, gamma[i], beta[i], s[f"d_y{i}"], **options)
        s.update({f"{name}{i}": getattr(n, name) for name in ("d_gamma", "d_beta", "d_x_hat", "d_var", "d_mu")})
        return n.dx  # (N11)

    # Backward.
    s["d_a4"] = dense_gradients(5, s["a4"])
    s["delta4"] = delta(4)
    s["d_a3"] = dense_gradients(4, s["a3"])
    s["delta3"] = delta(3)
    s["d_f"] = dense_gradients(3, s["f"])
    s["d_p2"] = s["d_f"].reshape(s["p2"].shape)  # (L5)
    s["d_a2"] = pool(s["a2"], 2, s["d_p2"]).dx  # (P4), (P10)
    s["delta2"] = delta(2)
    s["d_p1"] = convolution_gradients(2, s["p1"], 0)
    s["d_a1"] = pool(s["a1"], 2, s["d_p1"]).dx  # (P4), (P10)
    s["delta1"] = delta(1)
    s["dx"] = convolution_gradients(1, x, config.padding)

    s["state"] = {name: _renewed(running, s, name[2:], config.momentum) for name, running in state.items()}
    return gather(LeNet5, s)


def _numbered(params: Tree, part: str, dtype: Any) -> dict[int, Any]:
    """One part of every layer ("kernel", "bias", "gamma" or "beta") by the layer's number; None if a layer has none."""
    layers = ("conv1", "conv2", "dense3", "dense4", "output")
    if part in ("gamma", "beta"):
        layers = ("bn1", "bn2", "bn3", "bn4")
    found = {i: params.get(name, {}).get(part) for i, name in enumerate(layers, start=1)}
    return {i: None if value is None else jnp.asarray(value).astype(dtype) for i, value in found.items()}


def _renewed(running: Any, s: dict[str, Any], i: str, momentum: float) -> Any:
    """The running statistics after this batch: momentum weighs the old value, the variance is the unbiased one."""
    mean, var = s[f"mu{i}"].astype(running.mean.dtype), s[f"var{i}"].astype(running.var.dtype)
    M = s[f"z{i}"].size // mean.size
    return type(running)(
        running.mean + (1 - momentum) * (mean - running.mean),
        running.var + (1 - momentum) * (var * (M / max(M - 1, 1)) - running.var),
        running.count + 1,
    )  # (N27)
