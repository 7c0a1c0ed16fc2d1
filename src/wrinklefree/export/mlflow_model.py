"""The exported folder as a model of MLflow: one file says so, and the weights stay where they are.

``mlflow.transformers.save_model`` would copy them, and keeps a reference only to a hub. A model of
MLflow is a folder with a file ``MLmodel``; its flavour for transformers takes the folder itself for
the model, and a tokenizer in ``components``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from wrinklefree.models.folder import copy_tokenizer
from wrinklefree.tracking.artifact import MLFLOW_MODEL

REQUIREMENTS = "accelerate\nmlflow>=3.17\ntorch\ntransformers>=5\n"
NEW_TOKENS = 64
"""That a prompt is continued by, unless the caller says otherwise."""


def write_mlflow_model(folder: Path, architecture: str) -> None:
    """Make ``folder``, which transformers loads, a folder that MLflow loads, registers and serves.

    Parameters
    ----------
    architecture : the class of transformers that loads it.
    """
    copy_tokenizer(folder, folder / "components" / "tokenizer")
    transformers: dict[str, Any] = {
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "pipeline_model_type": architecture,
        "model_binary": ".",
        "torch_dtype": "torch.float32",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
    }
    text = json.dumps([{"type": "string", "required": True}])
    length = {"name": "max_new_tokens", "type": "integer", "default": NEW_TOKENS, "shape": None}
    content = {
        "flavors": {
            "python_function": {"loader_module": "mlflow.transformers"},
            "transformers": transformers,
        },
        "signature": {"inputs": text, "outputs": text, "params": json.dumps([length])},
    }
    (folder / MLFLOW_MODEL).write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
