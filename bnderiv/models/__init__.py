"""Networks made of the layers: pure `init` and `apply` on plain dicts, one module each."""

from bnderiv.models import lenet5, mlp

__all__ = ["lenet5", "mlp"]
