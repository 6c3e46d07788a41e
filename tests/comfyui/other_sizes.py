"""ComfyUI, with FLUX transformers, ControlNets, a style projector and a T5 of other sizes than the published ones.

    python tests/comfyui/other_sizes.py /path/to/ComfyUI FLAGS...

ComfyUI takes the widths of FLUX.1 as given. Here they are read from the shapes of a file; nothing else is changed.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from inside import enter

T5 = {"num_heads": 2, "d_ff": 64}  # example_models.py


def widths_from_files() -> None:
    """Have ComfyUI read the width of a FLUX from its file, and make T5 with the sizes T5."""
    import comfy.model_detection as detection
    import comfy.text_encoders.sd3_clip as encoders

    detect, make = detection.detect_unet_config, encoders.T5XXLModel.__init__

    def detected(state_dict: Any, key_prefix: str, *args: Any, **kwargs: Any) -> Any:
        found = detect(state_dict, key_prefix, *args, **kwargs)
        if found and found.get("image_model") == "flux":
            hidden = state_dict[f"{key_prefix}img_in.weight"].shape[0]
            found |= {"hidden_size": hidden, "num_heads": hidden // 128}
        return found

    def made(self: Any, *args: Any, model_options: Any = None, **kwargs: Any) -> None:
        make(self, *args, model_options={**(model_options or {}), "t5xxl_model_config": T5}, **kwargs)

    detection.detect_unet_config, encoders.T5XXLModel.__init__ = detected, made


def projector_from_file() -> None:
    """Have ComfyUI read the width of USO's projector from its file, once its nodes are there."""
    import nodes

    init: Any = nodes.init_extra_nodes

    async def initialised(*args: Any, **kwargs: Any) -> Any:
        done = await init(*args, **kwargs)
        there = nodes.NODE_CLASS_MAPPINGS["ModelPatchLoader"].load_model_patch.__globals__
        published: Any = there["SigLIPMultiFeatProjModel"]

        class Sized(published):  # type: ignore[misc]
            def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
                hidden, dtype = state["high_projection.weight"].shape[0], state["high_projection.weight"].dtype
                operations = there["comfy"].ops.manual_cast
                published.__init__(self, hidden_size=hidden, dtype=dtype, operations=operations)
                return published.load_state_dict(self, state, *args, **kwargs)

        there["SigLIPMultiFeatProjModel"] = Sized
        return done

    nodes.init_extra_nodes = initialised


if __name__ == "__main__":
    checkout, *flags = sys.argv[1:]
    enter(checkout, *flags)
    widths_from_files()
    projector_from_file()
    os.chdir(checkout)
    runpy.run_path(str(Path(checkout) / "main.py"), run_name="__main__")
