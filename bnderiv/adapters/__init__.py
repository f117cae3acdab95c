"""What the adapters for Flax linen, Flax NNX, Equinox and Haiku share."""


def missing(adapter: str, framework: str, extra: str) -> ImportError:
    """The error of an adapter whose framework is not installed, with a command that installs it."""
    source = "git+https://github.com/bnderiv/bnderiv"
    return ImportError(f'{adapter} needs {framework}: python -m pip install "bnderiv[{extra}] @ {source}"')
