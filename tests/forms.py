"""The layers as they are computed on each platform, all of them on the CPU."""

import contextlib
from collections.abc import Iterator

import jax
import pytest

from bnderiv import _target
from bnderiv.pooling import _xla
from tests import contract

PLATFORMS = ("cpu", "cuda", "tpu")


@contextlib.contextmanager
def of(platform: str) -> Iterator[str]:
    """Within it every layer is computed in this platform's form; pools in float64 too, which a TPU cannot select in."""

    def without_dilation(both, _):
        return all(w.dilation == 1 for w in both)

    with pytest.MonkeyPatch.context() as patch:
        if platform != "cpu":
            patch.setattr(
                _target.lax,
                "platform_dependent",
                lambda *args, default, **forms: forms.get(platform, default)(*args),
            )
        if platform == "tpu":
            patch.setattr(_xla, "can_take", without_dilation)
        forget()
        yield platform
    forget()


def forget() -> None:
    """After the form was changed: what was compiled is not to be used again."""
    contract.forget()
    jax.clear_caches()


@pytest.fixture(
    scope="module", params=["cpu", *(pytest.param(p, marks=pytest.mark.slow) for p in ("cuda", "tpu"))], autouse=True
)
def platform(request) -> Iterator[str]:
    """To import where the tests of a module are for every platform."""
    with of(request.param):
        yield request.param
