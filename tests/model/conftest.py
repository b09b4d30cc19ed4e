"""Shapes that `model` declares are checked at run time in every test of it."""

from jaxtyping import install_import_hook

from tests import array_checker

install_import_hook("model", f"{array_checker.__name__}.check")
