"""How optional packages are had."""


def install(extra: str) -> str:
    """What the reader types to have the packages of an extra of pyproject.toml."""
    return f"pip install '.[{extra}]' in a checkout of gsr-kernels"
