"""Run onnxruntime-genai's model builder as its command line does, also for Gemma 3.

Runs in genai's virtual environment, with the builder's own arguments. Version 0.18 reads ``rope_parameters`` as one
flat description, but transformers 5 gives Gemma 3 one for each kind of layer, and the builder stops with
``KeyError: 'rope_type'``. Its next model (Gemma 4) reads them itself; the same is done here for Gemma 3. Nothing else
of what the builder makes is touched.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import onnxruntime_genai.models  # noqa: F401 - puts the builder's own folder on the path, from where it imports
from builders.gemma import Gemma3Model

inherited = Gemma3Model.make_rope_init


def make_rope_init(self: Any, config: Any) -> None:
    """Both kinds of layer rotate without scaling; the builder makes the tables of local layers by itself."""
    schemes = config.rope_parameters
    if "full_attention" not in schemes:
        inherited(self, config)
        return
    if any(scheme["rope_type"] != "default" for scheme in schemes.values()):
        raise NotImplementedError(f"rotation scaled by {schemes}")
    self.rope_attrs["theta"] = schemes["full_attention"]["rope_theta"]
    config.rope_local_base_freq = schemes["sliding_attention"]["rope_theta"]


if __name__ == "__main__":
    if "make_rope_init" not in vars(Gemma3Model):  # a later version may read them itself
        Gemma3Model.make_rope_init = make_rope_init
    sys.argv[0] = "builder"
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
