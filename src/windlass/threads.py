"""Environment variables by which numerical libraries learn how many threads they may start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Read when a library is loaded, or before it starts its threads. A library that is not told takes a thread for each core of the node, in
#: each slot of it. DuckDB reads none. JAX reads PJRT_NPROC and is not told: a callback from what it computes keeps a thread, also while it
#: waits for something that it computes itself, so that with one thread, and where callbacks are nested with three, it waits for ever.
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
    "OPENCV_FOR_THREADS_NUM",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)

#: What functions read on Slurm, and newer releases' ``srun``: in a pilot all of its cores.
OF_SLURM: Final = "SLURM_CPUS_PER_TASK"


def thread_variables(cores: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What to tell a process with this environment that may use so many cores."""
    return dict.fromkeys((*THREAD_VARIABLES, OF_SLURM) if OF_SLURM in environ else THREAD_VARIABLES, cores)
