"""Pickles of arrays and plain containers are read; a pickle that would call anything else is not."""

import os
import pickle

import numpy as np
import pytest

from st4vla.platform.data.plain_pickle import read_plain
from st4vla.platform.errors import DataError


class Calls:
    """Pickles to a call of a function with an argument."""

    def __init__(self, function, argument: str) -> None:  # noqa: ANN001
        self.function, self.argument = function, argument

    def __reduce__(self):  # noqa: ANN204
        return self.function, (self.argument,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_numbers_and_containers_come_back_in_every_protocol(protocol: int) -> None:
    records = np.array([(4, 0.5)], dtype=[("id", "<u4"), ("ratio", "<f4")])
    wrote = {"boxes": records, "count": np.float64(2.5), "names": ["shoe", ("pot", None)]}
    if protocol < 3:
        # Older protocols rebuild bytes by calling a codec, which is not on the list.
        wrote = {"names": ["shoe", ("pot", None)]}
    read = read_plain(pickle.dumps(wrote, protocol), "here")
    assert read["names"] == ["shoe", ("pot", None)]
    if protocol >= 3:
        assert read["boxes"]["id"].tolist() == [4] and read["count"] == 2.5


@pytest.mark.parametrize(("function", "name"), [(os.system, "system"), (eval, "builtins.eval"), (open, "open")])
def test_a_pickle_that_calls_something_is_refused_by_its_name_and_calls_nothing(tmp_path, function, name) -> None:  # noqa: ANN001
    harm = str(tmp_path / "harm")
    with pytest.raises(DataError, match=rf"row 3 holds a pickle that wants .*{name}; only numpy arrays"):
        read_plain(pickle.dumps(Calls(function, f"touch {harm}")), "row 3")
    assert not os.path.exists(harm)


def test_a_damaged_pickle_is_named() -> None:
    with pytest.raises(DataError, match="row 3 holds a damaged pickle"):
        read_plain(pickle.dumps([1, 2, 3])[:-3], "row 3")
