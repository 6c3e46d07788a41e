"""ComfyUI's own tests of its executor, with their node pack, against our server: no ComfyUI is on the path.

    python tests/comfyui/execution.py /path/to/ComfyUI [OPTIONS OF PYTEST]

Only the folder tests/execution of the checkout is read, and copied away from it. Beside the copy lies a `main.py` that
starts `sluice serve` with the tests' node pack, and a `comfy_execution.graph_utils` that is ours, which the tests
import to build their graphs. Needs websocket-client. Times are not checked.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SLUICE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sluice", {str(ROOT / "__init__.py")!r})
sys.modules["sluice"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["sluice"])
"""
MAIN = f"""{SLUICE}
import argparse, os, tempfile
parser = argparse.ArgumentParser()
for name in ("--output-directory", "--listen", "--port", "--extra-model-paths-config", "--cache-lru"):
    parser.add_argument(name)
parser.add_argument("--cpu", action="store_true")
given = parser.parse_args()
from sluice.flux_core.commands.cli import main
packs = ["--node-packs", os.path.abspath("tests/execution/testing_nodes")]
own = ["--base-directory", tempfile.mkdtemp(dir=".")]  # ComfyUI forgets its history; ours stays with its folder
place = ["--host", given.listen, "--port", given.port, "--out", os.path.abspath(given.output_directory), *own]
raise SystemExit(main(["serve", "--device", "cpu", *packs, *place]))
"""
GRAPHS = f"""{SLUICE}
from sluice.flux_core.facade.offered.comfy_execution.graph_utils import *
"""


def lay_out(comfyui: Path, folder: Path) -> None:
    """The tests, and the parts of ComfyUI that they need."""
    shutil.copytree(comfyui / "tests" / "execution", folder / "tests" / "execution")
    for name in ("__init__.py", "conftest.py"):
        shutil.copy(comfyui / "tests" / name, folder / "tests")
    (folder / "main.py").write_text(MAIN)
    (folder / "comfy_execution").mkdir()
    (folder / "comfy_execution" / "__init__.py").write_text("")
    (folder / "comfy_execution" / "graph_utils.py").write_text(GRAPHS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  execution\npythonpath = .\n")


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as free:
        folder = Path(temporary)
        lay_out(Path(sys.argv[1]), folder)
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        # The tests start `python main.py`.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        command = [sys.executable, "-m", "pytest", "-q", "--skip-timing-checks", "--port", port, "tests/execution"]
        environment = {**os.environ, "PATH": path}
        return subprocess.run([*command, *sys.argv[2:]], cwd=folder, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
