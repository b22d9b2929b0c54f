"""Strict settings for every test: no silent broadcasting between ranks, no silent warnings."""

import os
import resource
import shutil
import tempfile
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling takes most of the suite's time, and tests run each program a few times only. A flag that XLA does not know
# ends the process, so the second is for the versions that are known to have it.
_FLAGS = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
# What one test has compiled the others of this session read from disk: in other workers, in runs that tests start.
_COMPILED = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="ehrjax-tests-")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": _COMPILED, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_unconfigure():
    """Workers inherit the folder's name, so the process that made it goes last."""
    if _COMPILED:
        shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_functions():
    """Compiled functions of earlier modules would fill gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real data sets are not beside this checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture
def limit_file_size():
    """A context in which no file can grow beyond so many bytes: what a full disk looks like to whoever writes."""

    @contextmanager
    def limited(num_bytes: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
