"""The answers to layers.ipynb, cell by cell, with the names it has defined by then."""
# ruff: noqa: F821
# pyright: reportUndefinedVariable=false

# %% 1.1
d_logits = s - np.eye(4)[label]  # (S10)

# %% 2.1
d_kernel = a.T @ delta  # (L2)
d_bias = delta.sum(0)  # (L4)

# %% 2.2
dx = delta @ W.T  # (L3)

# %% 3.1
dx = delta * (1 - a**2)  # (A5)

# %% 4.1
dx = np.zeros((4, 5))
for place, cells in windows(dx):
    cells += delta[place] / 4  # (P4)

# %% 4.2
dx = np.zeros((4, 5))
for (place, cells), (_, values) in zip(windows(dx), windows(image), strict=True):
    cells[np.unravel_index(values.argmax(), (2, 2))] += delta[place]  # (P10)

# %% 5.1
d_bias = delta.sum()  # (C3)
d_kernel = correlate(image, delta)  # (C2)

# %% 5.2
dx = correlate(np.pad(delta, ((2, 2), (1, 1))), kernel[::-1, ::-1])  # (C4)
