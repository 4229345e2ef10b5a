"""The golden model under a short name, and the released folder layout around it."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor

from swiftmask.models.meissonic import Meissonic


@pytest.fixture
def model(golden_meissonic: Meissonic) -> Meissonic:
    return golden_meissonic


@pytest.fixture
def released(tmp_path: Path, golden_meissonic: Meissonic) -> Path:
    """A folder laid out as upstream's, with what such folders have beside weights."""
    folder, text = tmp_path / "released", golden_meissonic.text_encoder
    for name in ("transformer", "vqvae", "text_encoder", "scheduler"):
        (folder / name).mkdir(parents=True)
    write(folder / "transformer", golden_meissonic.transformer.state_dict())
    write(folder / "vqvae", golden_meissonic.codec.vq.state_dict())
    write(folder / "text_encoder", text.clip.state_dict(), "model.safetensors")
    text.tokenizer.save(folder / "tokenizer")
    configs: dict[str, dict[str, object]] = {
        "transformer": {"_class_name": "Transformer2DModel", "axes_dims_rope": [4, 4, 4], "num_layers": 19},
        "vqvae": {
            "_class_name": "VQModel",
            "act_fn": "silu",
            "block_out_channels": [8, 8],
            "layers_per_block": 1,
            "latent_channels": 4,
            "num_vq_embeddings": 32,
            "norm_num_groups": 4,
            "vq_embed_dim": None,
            "mid_block_add_attention": False,
        },
        "text_encoder": {"hidden_act": "gelu", "num_attention_heads": 2, "eos_token_id": 0, "dropout": 0.0},
    }
    for name, content in configs.items():
        (folder / name / "config.json").write_text(json.dumps(content))
    scheduler = {"_class_name": "Scheduler", "mask_token_id": 39, "masking_schedule": "cosine"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text('{"transformer": ["src.transformer", "Transformer2DModel"]}')
    return folder


def write(folder: Path, state: dict[str, Tensor], name: str = "diffusion_pytorch_model.safetensors") -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
