"""Environment variables by which numerical libraries learn how many threads they may start."""

from __future__ import annotations

from typing import Final

#: Read when a library is loaded, or before it starts its threads. A library that is not told takes a thread for each core of the node, in
#: each slot of it. (DuckDB reads none.)
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",  # OpenMP: PyTorch, XGBoost, LightGBM, scikit-learn; pyarrow
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",  # libraries in Rust
    "PJRT_NPROC",  # JAX on processors
    "OPENCV_FOR_THREADS_NUM",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
