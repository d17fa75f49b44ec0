"""Run-time checks of annotations: shapes, dtypes and types, for jaxtyping's import hook."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, with two exceptions for constructors of data classes.

    jaxtyping has the arguments checked before a call, and again with the result after it.
    Constructors are only checked after: a class that validates its fields raises its own error
    first.  Trees without a single array are not checked: JAX rebuilds every tree with placeholders,
    names or shapes as leaves.
    """
    check = beartype(function)
    if function.__name__ != "__init__":
        return check
    is_before = function.__annotations__["return"] is Any

    @functools.wraps(function)
    def constructor(self: object, *arguments: Any, **named: Any) -> Any:
        leaves = [] if is_before else jax.tree.leaves(self)
        is_real = any(leaf is self or isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)
        return (check if is_real else function)(self, *arguments, **named)

    return constructor
