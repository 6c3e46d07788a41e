"""Test this checkout as ``sluice``, whatever its folder is called and whatever is installed."""

import importlib.util
import os
import sys
from pathlib import Path

if "SLUICE_INSTALLED" not in os.environ:
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location("sluice", root / "__init__.py")
    assert spec and spec.loader
    sys.modules["sluice"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["sluice"])
