"""Networks built from the layers: one module each, with pure `init` and `apply` on plain dicts."""

from bnderiv.models import lenet5, mlp

__all__ = ["lenet5", "mlp"]
