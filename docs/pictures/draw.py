"""Draws the pictures of the derivations, from the arrays of `bnderiv.steps`.

    python docs/pictures/draw.py                 into this folder
    python docs/pictures/draw.py --out FOLDER    into another

Blue is what goes forward, red what comes back.
"""

import argparse
from pathlib import Path

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from bnderiv import steps

FOLDER = Path(__file__).parent
FORWARD, BACKWARD, QUIET = "#1f4e9c", "#b3261e", "#777777"
CHANNELS = ("#f6c9c4", "#cde7c9", "#c9d9f3")


def number(value: float, digits: int = 3) -> str:
    """As short as it is exact, with a proper minus."""
    return f"{round(float(value), digits):g}".replace("-", "−")


def tuple_of(values) -> str:
    values = np.ravel(values)
    return number(values[0]) if values.size == 1 else f"({', '.join(map(number, values))})"


def sheet(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(aspect="equal", title=title)
    axes.axis("off")
    return figure, axes


def grid(axes: Axes, values, corner, *, cell=1.0, colors=None, strong=(), size=11.0, ink="black") -> None:
    """A matrix of numbers, its upper left corner at `corner`; the cells in `strong` have a thick frame."""
    values = np.asarray(values)
    for (i, j), value in np.ndenumerate(values):
        x, y = corner[0] + j * cell, corner[1] - (i + 1) * cell
        fill = "white" if colors is None else colors if isinstance(colors, str) else colors[i][j]
        axes.add_patch(Rectangle((x, y), cell, cell, facecolor=fill, edgecolor=QUIET, linewidth=0.8))
        axes.text(x + cell / 2, y + cell / 2, number(value), ha="center", va="center", fontsize=size, color=ink)
    for i, j in strong:
        frame = (corner[0] + j * cell, corner[1] - (i + 1) * cell)
        axes.add_patch(Rectangle(frame, cell, cell, fill=False, edgecolor="black", linewidth=2.2, zorder=3))


def window(axes: Axes, corner, top, left, rows, columns, *, cell=1.0, color=BACKWARD) -> None:
    """A frame around some cells of a grid."""
    place = (corner[0] + left * cell, corner[1] - (top + rows) * cell)
    axes.add_patch(Rectangle(place, columns * cell, rows * cell, fill=False, edgecolor=color, linewidth=2.6, zorder=4))


def graph() -> Figure:
    """The computation graph of batch norm, with the numbers of A.10 on its edges."""
    x, dy = np.array([[1.0], [3.0], [3.0], [1.0]]), np.array([[1.0], [2.0], [6.0], [3.0]])
    s = steps.batch_norm_graph(x, np.array([2.0]), np.array([1.0]), dy, eps=0.0)
    places = {  # x to 7 on two levels, then up and back to the left: a page is not wide
        "x": (0, 0),
        "1": (2.6, -3.3),
        "2": (5.2, 0),
        "3": (7.5, -3.3),
        "4": (12.9, -3.3),
        "5": (15.9, -3.3),
        "6": (18.9, -3.3),
        "7": (21.2, 0),
        "8": (21.2, 3.5),
        "9": (15.8, 3.5),
        "y": (10.4, 3.5),
        "γ": (24.7, 3.5),
        "β": (15.8, 6.2),
    }
    does = {
        "1": "mean",
        "2": r"$x - \mu$",
        "3": r"$c^2$",
        "4": "mean",
        "5": r"$\sqrt{\sigma^2 + \epsilon}$",
        "6": r"$1 / \rho$",
        "7": r"$c \cdot r$",
        "8": r"$\gamma \cdot \hat x$",
        "9": r"$+ \beta$",
    }
    beside = {"2": (0, 0.85), "7": (1.2, 0), "8": (0, 0.9)}  # what a node does; else below it
    level = (0, 0.42), (0, -0.42)  # of the two labels, from the middle of a horizontal edge
    upright, wide = ((-0.95, 0), (1.05, 0)), ((-2.0, 0), (2.0, 0))  # and of a vertical one
    edges = [  # from, to; what goes forward, what comes back; where the two labels are
        ("x", "2", rf"$x$ = {tuple_of(s.x)}", rf"$\bar c$ = {tuple_of(s.dx_through_c)}", *level),
        ("x", "1", r"$x$", rf"$\bar\mu / M$ = {number(s.dx_through_mu[0, 0])} each", (0.4, 0.3), (-1.75, -0.3)),
        ("1", "2", rf"$\mu$ = {tuple_of(s.mu)}", rf"$\bar\mu$ = {tuple_of(s.d_mu)}", (-0.85, 0.3), (0.9, -0.5)),
        ("2", "7", rf"$c$ = {tuple_of(s.c)}", rf"$r \bar{{\hat x}}$ = {tuple_of(s.d_c_through_x_hat)}", *level),
        ("2", "3", r"$c$", rf"$2 c \bar q$ = {tuple_of(s.d_c_through_q)}", (0.3, 0.75), (2.4, -0.1)),
        ("3", "4", rf"$q$ = {tuple_of(s.q)}", rf"$\bar q$ = {tuple_of(s.d_q)}", *level),
        ("4", "5", rf"$\sigma^2$ = {tuple_of(s.var)}", rf"$\bar{{\sigma^2}}$ = {tuple_of(s.d_var)}", *level),
        ("5", "6", rf"$\rho$ = {tuple_of(s.std)}", rf"$\bar\rho$ = {tuple_of(s.d_std)}", *level),
        ("6", "7", rf"$r$ = {tuple_of(s.inv_std)}", rf"$\bar r$ = {tuple_of(s.d_inv_std)}", (-0.9, 0.2), (0.9, -0.3)),
        ("7", "8", rf"$\hat x$ = {tuple_of(s.x_hat)}", rf"$\bar{{\hat x}}$ = {tuple_of(s.d_x_hat)}", *wide),
        ("8", "9", tuple_of(s.scaled), rf"$\delta$ = {tuple_of(s.d_scaled)}", *level),
        ("9", "y", rf"$y$ = {tuple_of(s.y)}", rf"$\delta$ = {tuple_of(s.dy)}", *level),
        ("γ", "8", rf"$\gamma$ = {tuple_of(s.gamma)}", rf"$\bar\gamma$ = {tuple_of(s.d_gamma)}", *level),
        ("β", "9", rf"$\beta$ = {tuple_of(s.beta)}", rf"$\bar\beta$ = {tuple_of(s.d_beta)}", *upright),
    ]
    figure, axes = sheet(12, 5.4, "Batch norm as a graph: forward in blue, the gradient by the same quantity in red")
    for name, place in places.items():
        node = name in does
        axes.add_patch(Circle(place, 0.42, facecolor="#fff4d6" if node else "white", edgecolor="black", zorder=3))
        axes.text(*place, name, ha="center", va="center", fontsize=12, zorder=4)
        if node:
            right, up = beside.get(name, (0, -0.95))
            axes.text(place[0] + right, place[1] + up, does[name], ha="center", va="center", fontsize=10, color=QUIET)
    for start, end, forth, back, above, below in edges:
        a, b = np.array(places[start]), np.array(places[end])
        arrow = {"arrowstyle": "-|>", "mutation_scale": 14, "shrinkA": 15, "shrinkB": 15, "color": "black"}
        axes.add_patch(FancyArrowPatch(a, b, linewidth=1.1, **arrow))
        middle = (a + b) / 2
        for label, (right, up), color in ((forth, above, FORWARD), (back, below, BACKWARD)):
            axes.text(middle[0] + right, middle[1] + up, label, ha="center", va="center", fontsize=10, color=color)
    total = rf"$\bar x = \bar c + \bar\mu / M$ = {tuple_of(s.dx)}: two arrows leave $x$, their gradients add up"
    axes.text(-0.9, 1.7, total, fontsize=10, color=BACKWARD, ha="left")
    axes.set(xlim=(-1.4, 25.4), ylim=(-4.7, 6.9))
    return figure


def channel_sums() -> Figure:
    """Which elements a mean, a variance, a gradient of gamma and of beta are taken over."""
    x = np.array([[2, 0, 1, 3], [1, 4, 2, 1], [0, 2, 2, 0], [4, 2, 3, 1], [3, 0, 1, 4], [2, 2, 4, 0]], float)
    x = x.reshape(2, 3, 2, 2)  # two images, three channels, two rows and columns
    dy = np.array([[1, 0, 2, -1], [0, 1, 1, 2], [3, -1, 0, 1], [1, 2, -2, 0], [2, 0, 1, 0], [0, 1, -1, 2]], float)
    dy = dy.reshape(x.shape)
    s = steps.batch_norm(x, np.ones(3), np.zeros(3), dy, channel_axis=1, eps=0.0)
    figure, axes = sheet(13, 6.2, "A channel's sums go over all images and all pixels, and never over channels")
    sums = (
        (0.0, x, FORWARD, lambda c: (rf"$\mu_{c + 1} = {number(x[:, c].sum())} / 8 = {number(s.mu[c])}$",
                                     rf"$\sigma^2_{c + 1} = {number(s.var[c])}$")),
        (13.0, dy, BACKWARD, lambda c: (rf"$\partial J / \partial \beta_{c + 1} = {number(s.d_beta[c])}$",
                                        rf"$\partial J / \partial \gamma_{c + 1} = {number(s.d_gamma[c])}$")),
    )  # fmt: skip
    for left, values, color, said in sums:
        for c in range(3):
            for b in range(2):
                corner = (left + 1.5 + 3.6 * c, -0.6 - 2.9 * b)
                grid(axes, values[b, c], corner, colors=CHANNELS[c], size=12)
            axes.text(left + 2.5 + 3.6 * c, -0.2, f"channel {c + 1}", ha="center", fontsize=11)
            box = (left + 1.2 + 3.6 * c, -5.8)
            axes.add_patch(Rectangle(box, 2.6, 5.4, fill=False, edgecolor=color, linewidth=1.6, linestyle="--"))
            tip = {"arrowstyle": "-|>", "mutation_scale": 14, "color": color}
            axes.add_patch(FancyArrowPatch((box[0] + 1.3, -5.8), (box[0] + 1.3, -6.6), **tip))
            for k, line in enumerate(said(c)):
                axes.text(box[0] + 1.3, -7.0 - 0.8 * k, line, ha="center", va="center", fontsize=11.5, color=color)
        for b in range(2):
            axes.text(left + 0.9, -1.6 - 2.9 * b, f"image {b + 1}", ha="right", va="center", fontsize=11)
    axes.text(6.1, 0.7, r"$\mathbf{X}$, forward: (N1), (N2)", ha="center", fontsize=13, color=FORWARD)
    there = r"$\mathbf{\delta}$, backward: $\mathrm{sum}\,\delta$ (N6), $\mathrm{sum}\,\delta \odot \hat X$ (N5)"
    axes.text(19.1, 0.7, there, ha="center", fontsize=13, color=BACKWARD)
    axes.set(xlim=(-1.4, 25.2), ylim=(-8.4, 1.4))
    return figure


def kernel_turned() -> Figure:
    """The input's gradient of the example in A.5: the turned kernel on δ with a rim of zeros."""
    a = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    w, delta = np.array([[1.0, 2], [3, 4]]), np.array([[1.0, -1], [2, 0]])
    s = steps.conv2d(a, w.reshape(2, 2, 1, 1), np.ones(1), delta.reshape(1, 2, 2, 1))
    z, da = np.asarray(s.z)[0, :, :, 0], np.asarray(s.dx)[0, :, :, 0]
    figure, axes = sheet(12.5, 6.6, "Forward the kernel lies as it is; backward it is turned by 180°")
    grid(axes, a[0, :, :, 0], (0, 0))
    window(axes, (0, 0), 1, 0, 2, 2, color=FORWARD)
    axes.text(3.5, -1.5, r"$\star$", fontsize=22, ha="center", va="center")
    corners = [["#dbe6f7", "#b5cbee"], ["#8fb0e4", "#6995db"]]
    grid(axes, w, (4, -0.5), colors=corners)
    axes.text(6.6, -1.5, "+ 1 =", fontsize=14, ha="center", va="center")
    grid(axes, z, (7.3, -0.5), strong=[(1, 0)])
    axes.text(10.0, -1.2, r"$1 \cdot 4 + 2 \cdot 5 + 3 \cdot 7 + 4 \cdot 8 + 1 = 68$", fontsize=12, color=FORWARD)
    for x, y, label in ((1.5, 0.35, "$a$"), (5, 0.35, "$w$"), (8.3, 0.35, "$z$ (C1)")):
        axes.text(x, y, label, ha="center", fontsize=13, color=FORWARD)
    rim = np.pad(delta, 1)
    shade = [["#f0f0f0" if not (0 < i < 3 and 0 < j < 3) else "#f6d5d2" for j in range(4)] for i in range(4)]
    grid(axes, rim, (-0.5, -4.6), colors=shade)
    window(axes, (-0.5, -4.6), 2, 0, 2, 2)
    axes.text(3.95, -6.6, r"$\star$", fontsize=22, ha="center", va="center")
    grid(axes, w[::-1, ::-1], (4.4, -5.6), colors=[row[::-1] for row in corners[::-1]])
    axes.text(6.8, -6.6, "=", fontsize=14, ha="center", va="center")
    grid(axes, da, (7.2, -5.1), strong=[(2, 0)])
    axes.text(10.5, -6.6, r"$4 \cdot 0 + 3 \cdot 2 + 2 \cdot 0 + 1 \cdot 0 = 6$", fontsize=12, color=BACKWARD)
    axes.text(10.5, -7.4, r"not turned: $1 \cdot 0 + 2 \cdot 2 + \ldots = 4$, wrong", fontsize=11, color=QUIET)
    for x, label in (
        (1.5, r"$\delta$ with a rim of zeros"),
        (5.4, "$w$, turned"),
        (8.6, r"$\partial J / \partial a$ (C4)"),
    ):
        axes.text(x, -4.25, label, ha="center", fontsize=13, color=BACKWARD)
    axes.set(xlim=(-1, 17), ylim=(-9, 1.2))
    return figure


def windows_over_a_cell() -> Figure:
    """Average pooling with windows that overlap: each hands out its share, each cell adds up."""
    a = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    delta = np.array([[4.0, 8], [12, 16]])
    s = steps.avg_pool(a, 2, delta.reshape(1, 2, 2, 1), strides=1)
    total = np.asarray(s.dx)[0, :, :, 0]
    figure, axes = sheet(14, 3.6, "Four windows cover the cell in the middle: it adds up four shares")
    shares = []
    for k, (i, j) in enumerate(np.ndindex(2, 2)):
        share = np.zeros((3, 3))
        share[i : i + 2, j : j + 2] = delta[i, j] / 4
        shares.append(share)
        corner = (4.3 * k, 0)
        fill = [["#f6d5d2" if value else "white" for value in row] for row in share]
        grid(axes, share, corner, colors=fill, strong=[(1, 1)], size=13)
        window(axes, corner, i, j, 2, 2)
        said = f"window ({i}, {j}): $\\delta$ = {number(delta[i, j])}\neach cell gets {number(delta[i, j] / 4)}"
        axes.text(corner[0] + 1.5, 0.35, said, ha="center", fontsize=10, color=BACKWARD)
        axes.text(corner[0] + 3.65, -1.5, "+" if k < 3 else "=", ha="center", va="center", fontsize=18)
    assert np.array_equal(sum(shares), total)
    grid(axes, total, (17.2, 0), strong=[(1, 1)], size=13, ink=BACKWARD)
    axes.text(18.7, 0.35, r"$\partial J / \partial a$ (P4)", ha="center", fontsize=12, color=BACKWARD)
    axes.text(18.7, -3.6, r"$1 + 2 + 3 + 4 = 10$; assigned, it would be 4", ha="center", fontsize=10, color=QUIET)
    axes.set(xlim=(-0.5, 21.5), ylim=(-4, 1.4))
    return figure


def jacobian() -> Figure:
    """The Jacobian of one column as normalizing times centering."""
    x, eps = np.array([1.0, 2, 3, 5, 9]), 0.0
    N = len(x)
    s = steps.batch_norm(x[:, None], np.ones(1), np.zeros(1), np.ones((N, 1)), eps=eps)
    x_hat, r = np.asarray(s.x_hat)[:, 0], float(s.inv_std[0])
    centering = np.asarray(steps.centering_jacobian(N))
    normalizing = r * (np.eye(N) - np.outer(x_hat, x_hat) / N)
    whole = np.asarray(steps.normalization_jacobian(x[:, None], eps))[0]
    assert np.allclose(normalizing @ centering, whole, atol=1e-6)
    parts = [
        (normalizing / r, "normalizing\n" r"$\mathbf{I} - \frac{1}{N} \hat x \hat x^\top$"),
        (centering, "centering\n" r"$\mathbf{I} - \frac{1}{N} \mathbf{1} \mathbf{1}^\top$"),
        (whole / r, "the Jacobian, times $\\rho$\n" r"$\mathbf{P}$ of (N29)"),
    ]
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.9))
    figure.suptitle(rf"One column, $x = {tuple_of(x)}$: how $\hat x_k$ (row) moves when $x_i$ (column) moves")
    for panel, (matrix, title) in zip(panels, parts, strict=True):
        edges = np.arange(N + 1) - 0.5  # cells as shapes, not as pixels
        panel.pcolormesh(edges, edges, matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        panel.set(aspect="equal", ylim=(N - 0.5, -0.5))
        for (k, i), value in np.ndenumerate(matrix):
            ink = "white" if abs(value) > 0.65 else "black"
            panel.text(i, k, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=10, color=ink)
        panel.set_title(title, fontsize=12)
        panel.set(xticks=range(N), yticks=range(N), xticklabels=map(number, x), yticklabels=map(number, x))
        panel.set_xlabel("rows sum to 0" if np.allclose(matrix.sum(1), 0, atol=1e-6) else "rows do not sum to 0")
    for left, sign in ((0.352, "×"), (0.655, "=")):
        figure.text(left, 0.42, sign, ha="center", va="center", fontsize=24)
    figure.subplots_adjust(left=0.05, right=0.98, top=0.78, bottom=0.1, wspace=0.25)
    return figure


PICTURES = {draw.__name__: draw for draw in (graph, channel_sums, kernel_turned, windows_over_a_cell, jacobian)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: this one)")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    plain = {"svg.hashsalt": "bnderiv", "mathtext.fontset": "stix", "font.family": "DejaVu Sans"}
    with jax.enable_x64(True), plt.rc_context(plain):
        for name, draw in PICTURES.items():
            figure = draw()
            figure.savefig(out / f"{name}.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
