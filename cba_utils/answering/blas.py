"""A fast BLAS for MLX's CPU backend on Linux.

The Linux CPU wheel of MLX is linked against the reference BLAS, which is one to two orders of
magnitude slower than OpenBLAS. The dynamic linker resolves ``cblas_sgemm`` to the first library
that offers it, so an OpenBLAS loaded with global visibility *before* ``mlx.core`` is what MLX then
calls. The OpenBLAS used is the one inside the ``faiss-cpu`` wheel: of the wheels on PyPI it is the
smallest (19 MB) whose OpenBLAS keeps the standard symbol names and uses threads. It needs no root.
"""

import ctypes
import os
import platform
import sys
import warnings
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

_CARRIER = "faiss-cpu"
_ADVICE = (
    f"matrix products will be slow: install the wheel that carries OpenBLAS "
    f"(pip install '{_CARRIER}', or run 'make setup')"
)


def _kernel_for(flags: set[str]) -> str | None:
    """Name of the OpenBLAS kernel set for a CPU, from the flags in ``/proc/cpuinfo``.

    OpenBLAS chooses by CPU model, not by flags, and falls back to pre-AVX kernels on models that
    are newer than itself (four times slower where this was measured). The flags are the safe guide:
    a kernel set whose instructions the CPU lacks would crash.
    """
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq"} <= flags:
        return "SkylakeX"
    if {"avx2", "fma"} <= flags:
        return "Haswell"
    return None


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def _carried_libraries() -> list[Path]:
    """Shared libraries of the carrier wheel, dependencies before OpenBLAS."""
    try:
        files = metadata.files(_CARRIER) or []
    except metadata.PackageNotFoundError:
        return []
    found = {}
    for file in files:
        for stem in ("libquadmath", "libgfortran", "libgomp", "libopenblas"):
            if file.name.startswith(stem) and ".so" in file.name:
                found[stem] = Path(str(file.locate()))
    if "libopenblas" not in found:
        return []
    order = ("libquadmath", "libgfortran", "libgomp", "libopenblas")
    return [found[stem] for stem in order if stem in found]


@cache
def use_fast_blas() -> str:
    """Make MLX use a fast BLAS; must run before ``mlx.core`` is first imported.

    Does nothing on macOS (Accelerate and Metal) or when a CUDA build of MLX is installed.

    Returns
    -------
    str
        One line that says which BLAS is in use.

    Warns
    -----
    RuntimeWarning
        If only the reference BLAS is available, or ``mlx.core`` was imported too early.

    Examples
    --------
    >>> from cba_utils.answering.blas import use_fast_blas
    >>> isinstance(use_fast_blas(), str)
    True
    """
    if sys.platform != "linux":
        return f"BLAS: the platform's own ({platform.system()})"
    if next(metadata.distributions(name="mlx-cuda-13"), None):
        return "BLAS: cuBLAS, MLX's CUDA backend"
    libraries = _carried_libraries()
    if not libraries:
        warnings.warn(f"BLAS: the reference one; {_ADVICE}", RuntimeWarning, stacklevel=2)
        return "BLAS: reference"
    if "mlx.core" in sys.modules:
        warnings.warn(
            "BLAS: mlx.core was imported before cba_utils, so its own BLAS stays in use; "
            "import cba_utils first",
            RuntimeWarning,
            stacklevel=2,
        )
        return "BLAS: reference (mlx.core was imported first)"
    kernel = _kernel_for(_cpu_flags()) if platform.machine() == "x86_64" else None
    if kernel:
        os.environ.setdefault("OPENBLAS_CORETYPE", kernel)
    with _threads_of_a_product():
        for library in libraries:
            handle = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        threads = handle.openblas_get_num_threads()
    handle.openblas_get_corename.restype = ctypes.c_char_p
    core = handle.openblas_get_corename().decode()
    return f"BLAS: OpenBLAS ({core} kernels, {threads} thread{'s' * (threads > 1)} a product)"


@contextmanager
def _threads_of_a_product():
    """One thread a matrix product: `cba_utils.answering.cores` runs as many products as there are cores.

    ``OPENBLAS_NUM_THREADS`` asks for more, for work that has one product at a time. The library is
    built with OpenMP, whose variable it obeys, and only while it is loaded.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
    yield
    del os.environ["OMP_NUM_THREADS"]
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before
