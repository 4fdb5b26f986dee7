"""Read pickled numpy arrays, numbers and plain containers out of other people's datasets, and nothing else.

A pickle may name any function to call. Here only the few that rebuild arrays, dtypes and numpy numbers are found; any
other name stops the reading before it is called.
"""

import io
import pickle
from typing import Any

import numpy as np

from st4vla.platform.errors import DataError

# numpy moved `core` to `_core` in 2.0; both spellings mean the same functions.
ALLOWED = {
    **{
        (f"numpy.{core}.multiarray", name): getattr(np._core.multiarray, name)  # type: ignore[attr-defined]
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): np._core.numeric._frombuffer for core in ("core", "_core")},  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_plain(content: bytes, where: str) -> Any:
    """Rebuild the arrays, numbers, texts and containers in `content`.

    Raises:
        DataError: the pickle is damaged or names anything that is not allowed; `where` is named.
    """
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except _NotAllowed as error:
        raise DataError(
            f"{where} holds a pickle that wants {error}; only numpy arrays, numbers and plain containers are read, "
            "since anything else could run code. Ask its makers for typed columns."
        ) from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise DataError(f"{where} holds a damaged pickle: {error}.") from error


class _NotAllowed(Exception):
    """A pickle names something outside the list."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise _NotAllowed(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _NotAllowed("a persistent object")
