"""Which rows of a file have which finding, for whoever removes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from .check import CheckOptions, check_rows
from .preference_check import check_preferences, kind_of


def finding_rows(train_file: Path, **options: Unpack[CheckOptions]) -> Mapping[str, NDArray[np.int64]]:
    """For each kind of finding (an id of `finding_kinds.KINDS`, or ``bad_row``) all its rows, ascending, each once.

    Rows are named by `Row.number`, as `read_rows` counts them. Of repeats the later ones are named, not the first. The
    options are those of `check_rows`; the file may hold supervised rows or preference pairs.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    if kind_of(train_file, options.get("columns")) == "supervised":
        return check_rows(train_file, **options).rows
    return check_preferences(train_file, **options).found.rows()
