"""Backends of the operators. ``dispatch`` chooses one, ``table`` registers their functions, of one name in each."""
