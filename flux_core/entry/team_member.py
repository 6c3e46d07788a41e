"""Started by a process that computes on several devices, as a file: see worker.py."""

import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2] / "__init__.py"
    sys.path.pop(0)  # this folder, put there because the file is run as a script
    spec = importlib.util.spec_from_file_location("sluice", root)
    assert spec and spec.loader
    sys.modules["sluice"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["sluice"])
    from sluice.flux_core.processor.lasting_imports import lasting_imports

    with lasting_imports():
        from sluice.flux_core.runtime.team_member import main

    main(sys.argv[1])
