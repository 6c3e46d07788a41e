"""Everything that can only be shown on a GPU: `python tests/gpu/evaluate.py`. Options and parts: `--help`.

The same as `sluice bench gpu`, from a checkout with nothing installed but PyTorch and what it needs.
"""

import importlib.util
import sys
from pathlib import Path

if "sluice" not in sys.modules:  # also in every process this one starts
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("sluice", root / "__init__.py")
    assert spec and spec.loader
    sys.modules["sluice"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["sluice"])

if __name__ == "__main__":
    from sluice.flux_core.commands.cli import main

    sys.exit(main(["bench", "gpu", *sys.argv[1:]]))
