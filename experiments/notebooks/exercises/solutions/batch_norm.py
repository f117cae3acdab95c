"""The answers to batch_norm.ipynb, cell by cell, with the names it has defined by then."""
# ruff: noqa: F821
# pyright: reportUndefinedVariable=false

# %% 1.1
J = np.eye(N) - 1 / N  # (N15)

# %% 1.2
dh = dy - dy.mean(0)

# %% 2.1
d_beta = dy.sum(0)  # (N6)
d_scaled = dy

# %% 2.2
d_gamma = (d_scaled * x_hat).sum(0)  # (N5)
d_x_hat = d_scaled * gamma  # (N7)

# %% 2.3
d_inv_std = (d_x_hat * centered).sum(0)
d_c_through_x_hat = d_x_hat * inv_std

# %% 2.4
d_std = -d_inv_std / std**2
d_var = d_std / (2 * std)

# %% 2.5
d_q = np.broadcast_to(d_var / N, q.shape)
d_c_through_q = 2 * centered * d_q
d_c = d_c_through_x_hat + d_c_through_q

# %% 2.6
d_mu = -d_c.sum(0)
dx = d_c + d_mu / N

# %% 3.1
d_gamma = (d_images * images_hat).sum((0, 1, 2))  # (N5)
d_beta = d_images.sum((0, 1, 2))  # (N6)
dx = gamma * r * (d_images - d_beta / M - images_hat * d_gamma / M)  # (N12)

# %% 3.2
dx_of_the_sum = np.zeros_like(images)
