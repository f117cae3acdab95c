"""The answers to lenet5.ipynb, cell by cell, with the names it has defined by then."""
# ruff: noqa: F821
# pyright: reportUndefinedVariable=false

# %% 1.1
delta5 = (s["a5"] - np.eye(10)[labels]) / N  # (S10)


# %% 1.2
def dense_back(a, W, delta):
    d_W = a.T @ delta  # (L2)
    d_b = delta.sum(0)  # (L4)
    d_a = delta @ W.T  # (L3)
    return d_W, d_b, d_a


# %% 1.3
d_y4 = d_a4 * (1 - s["a4"] ** 2)  # (A5)


# %% 1.4
def norm_back(d_y, x_hat, inv_std, gamma):
    over = tuple(range(d_y.ndim - 1))
    M = d_y.size // d_y.shape[-1]
    d_gamma = (d_y * x_hat).sum(over)  # (N5)
    d_beta = d_y.sum(over)  # (N6)
    d_z = gamma * inv_std * (d_y - d_beta / M - x_hat * d_gamma / M)  # (N12)
    return d_z, d_gamma, d_beta


# %% 1.5
d_kernel4, _, d_a3 = dense_back(s["a3"], params["dense4"]["kernel"], delta4)
d_y3 = d_a3 * (1 - s["a3"] ** 2)
delta3, _, _ = norm_back(d_y3, s["x_hat3"], s["inv_std3"], params["bn3"]["gamma"])
d_kernel3, _, d_f = dense_back(s["f"], params["dense3"]["kernel"], delta3)

# %% 2.1
d_p2 = d_f.reshape(s["p2"].shape)  # (L5)


# %% 2.2
def pool_back(d_p):
    d_a = np.repeat(np.repeat(d_p / 4, 2, axis=1), 2, axis=2)  # (P4)
    return d_a


# %% 2.3
d_y2 = d_a2 * (1 - s["a2"] ** 2)
delta2, _, _ = norm_back(d_y2, s["x_hat2"], s["inv_std2"], params["bn2"]["gamma"])


# %% 2.4
def kernel_back(a, delta):
    windows = sliding_window_view(a, delta.shape[1:3], (1, 2))
    d_kernel = np.tensordot(windows, delta, ((0, 4, 5), (0, 1, 2)))  # (C7)
    return d_kernel


# %% 2.5
def input_back(kernel, delta):
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    d_a = correlate(np.pad(delta, ((0, 0), (4, 4), (4, 4), (0, 0))), turned)  # (C9), (C11)
    return d_a


# %% 2.6
d_y1 = pool_back(d_p1) * (1 - s["a1"] ** 2)
delta1, _, _ = norm_back(d_y1, s["x_hat1"], s["inv_std1"], params["bn1"]["gamma"])
d_kernel1 = kernel_back(s["x"], delta1)


# %% 3.1
def backward(params, s, labels):
    gradients = {layer: {} for layer in params}

    def down(i, d_a):
        """Through tanh and batch norm of layer i."""
        d_y = d_a * (1 - s[f"a{i}"] ** 2)
        gamma = params[f"bn{i}"]["gamma"]
        delta, d_gamma, d_beta = norm_back(d_y, s[f"x_hat{i}"], s[f"inv_std{i}"], gamma)
        gradients[f"bn{i}"] = {"gamma": d_gamma, "beta": d_beta}
        return delta

    def dense(layer, a, delta):
        d_W, d_b, d_a = dense_back(a, params[layer]["kernel"], delta)
        gradients[layer] = {"kernel": d_W} | ({"bias": d_b} if layer == "output" else {})
        return d_a

    delta = (s["a5"] - np.eye(10, dtype=np.float32)[labels]) / len(labels)
    delta = down(4, dense("output", s["a4"], delta))
    delta = down(3, dense("dense4", s["a3"], delta))
    d_p2 = dense("dense3", s["f"], delta).reshape(s["p2"].shape)
    delta = down(2, pool_back(d_p2))
    gradients["conv2"] = {"kernel": kernel_back(s["p1"], delta)}
    delta = down(1, pool_back(input_back(params["conv2"]["kernel"], delta)))
    gradients["conv1"] = {"kernel": kernel_back(s["x"], delta)}
    return gradients


# %% 3.2
def descend(params, gradients, rate):
    new = {
        layer: {name: p - rate * gradients[layer][name] for name, p in arrays.items()}
        for layer, arrays in params.items()
    }
    return new


# %% 3.3
def renewed(mean, var, mu, batch_var, count):
    new_mean = 0.9 * mean + 0.1 * mu
    new_var = 0.9 * var + 0.1 * batch_var * count / (count - 1)  # (N27)
    return new_mean, new_var
