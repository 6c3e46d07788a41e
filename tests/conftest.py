"""Test this checkout as ``sluice``, whatever its folder is called and whatever is installed."""

import gc
import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

if "SLUICE_INSTALLED" not in os.environ:
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location("sluice", root / "__init__.py")
    assert spec and spec.loader
    sys.modules["sluice"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["sluice"])

# With `-n`, every process of pytest has a core; threads of torch that outnumber the cores wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# In background jobs of shells SIGINT is ignored, also in their child processes. Tests send it to processes they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def prologue() -> str:
    """What another Python runs first, to have the same `sluice`."""
    return (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('sluice', {sys.modules['sluice'].__file__!r})\n"
        "sys.modules['sluice'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(sys.modules['sluice'])\n"
    )


@pytest.fixture(scope="session")
def command(prologue: str) -> list[str]:
    """The command line that is `sluice`, to be followed by arguments."""
    return [sys.executable, "-c", prologue + "from sluice.flux_core.commands.cli import main; raise SystemExit(main())"]


def pytest_collection_finish() -> None:
    """What imports and collecting have made is not looked through again at each garbage collection.

    The memory manager collects before it measures what is free; with these objects that takes a fifth of a second.
    """
    gc.collect()
    gc.freeze()
