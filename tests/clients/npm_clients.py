"""Clients that other people publish for Node.js, each through a whole job of a running `sluice serve`.

    python tests/clients/npm_clients.py ADDRESS [FOLDER]

Installs @saintno/comfyui-sdk, @stable-canvas/comfyui-client and comfy-ui-client with npm into FOLDER (default: one that
is deleted afterwards), and has each make an image with the shipped small model. Needs node and npm.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from python_clients import prompt

PACKAGES = ("@saintno/comfyui-sdk", "@stable-canvas/comfyui-client", "comfy-ui-client", "ws")


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[2] if sys.argv[2:] else temporary)
        if not all((folder / "node_modules" / name).is_dir() for name in PACKAGES):
            subprocess.run(["npm", "install", "--silent", "--no-save", "--prefix", str(folder), *PACKAGES], check=True)
        file = Path(temporary) / "prompt.json"
        file.write_text(json.dumps(prompt()))
        script = Path(__file__).with_suffix(".mjs")
        return subprocess.run(["node", str(script), sys.argv[1].rstrip("/"), str(folder), str(file)]).returncode


if __name__ == "__main__":
    raise SystemExit(main())
