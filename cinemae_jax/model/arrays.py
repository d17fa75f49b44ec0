"""Types of array fields and of parameters, shared by the data classes of the model."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array

# An array on a device (or its tracer), or its copy on the host.
AnyArray: TypeAlias = Array | np.ndarray

# Arrays in nested dicts by the names of Flax modules.
Params: TypeAlias = Mapping[str, Any]
