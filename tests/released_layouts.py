"""Models laid out on disk as their authors publish them, at toy width: what users have, in miniature."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from swiftmask.core.vq_codec import VQConfig, build_vq_codec
from swiftmask.methods.shortcut import RotaryShortcut, RotaryShortcutConfig, Shortcut, ShortcutConfig
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.network import Network, NetworkConfig
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.models.meissonic import Meissonic

DIMOO_BACKBONE = BackboneConfig(
    width=8, depth=2, num_heads=2, mlp_width=12, vocabulary_size=134548, rope_theta=1e4
)
DIMOO_CODEC = VQConfig(
    block_out_channels=(4, 4, 4, 4, 4),
    layers_per_block=1,
    latent_channels=2,
    num_vq_embeddings=8192,
    norm_num_groups=2,
)
DIMOO_SETTINGS = {
    "model_type": "llada", "d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 12,
    "rope_theta": 1e4, "rms_norm_eps": 1e-5, "vocab_size": 126464, "mask_token_id": 126336,
    "block_type": "llama", "weight_tying": False,
}  # fmt: skip
NULL = (126332, 36289, 289, 3972, 4631, 297, 268, 3019, 12166, 13, 126333, 126334, 126351, 126335)
TEXT = "<system> Generate an image according to the text prompt . </system> <user> <uncondition> </user>"


def write_maskgit(folder: Path, *, grid: int = 16) -> tuple[Path, Path]:
    """`MaskGIT/MaskGIT_ImageNet_256.pth` and `VQGAN/last.ckpt`, with what their trainers kept beside."""
    sizes = TransformerConfig(
        width=32, depth=1, num_heads=16, mlp_width=32, codebook_size=1024, num_classes=1000, grid=grid
    )
    codec = VQGANConfig(
        ch=32,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=256,
        z_channels=8,
        n_embed=1024,
        embed_dim=8,
    )
    for name in ("MaskGIT", "VQGAN"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    transformer = folder / "MaskGIT" / f"MaskGIT_ImageNet_{16 * grid}.pth"
    trained = {"iter": 1, "global_epoch": 2, "optimizer_state_dict": {"state": {0: torch.ones(2)}}}
    torch.save({**trained, "model_state_dict": Transformer(sizes).state_dict()}, transformer)
    lightning = {"state_dict": VQGAN(codec).state_dict() | {"loss.logvar": torch.ones(1)}, "epoch": 3}
    torch.save(lightning, folder / "VQGAN" / "last.ckpt")
    return transformer, folder / "VQGAN" / "last.ckpt"


def write_mar(folder: Path) -> tuple[Path, Path]:
    """`mar_base/checkpoint-last.pth` (whose averaged weights are others than the last) and `kl16.ckpt`: the
    released width, which tells the number of heads, on 2x2 tokens.
    """
    sizes = NetworkConfig(
        encoder_width=768,
        encoder_depth=1,
        encoder_heads=12,
        decoder_width=768,
        decoder_depth=1,
        decoder_heads=12,
        channels=16,
        grid=2,
        num_classes=1000,
        head_width=32,
        head_depth=1,
        buffer_size=4,
    )
    codec = KLConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=4, z_channels=16
    )
    (folder / "mar_base").mkdir(parents=True)
    averaged = Network(sizes).state_dict()
    last = {key: value + 1 for key, value in averaged.items()}
    options = argparse.Namespace(model="mar_base")
    network = folder / "mar_base" / "checkpoint-last.pth"
    torch.save({"model": last, "model_ema": averaged, "args": options, "epoch": 1}, network)
    torch.save({"model": KLCodec(codec).state_dict()}, folder / "kl16.ckpt")
    return network, folder / "kl16.ckpt"


def write_shortcuts(folder: Path) -> tuple[Path, Path]:
    """The published shortcuts of MaskGIT and of Lumina-DiMOO, which are plain state dicts."""
    folder.mkdir(parents=True, exist_ok=True)
    maskgit = Shortcut(ShortcutConfig(width=32, bottleneck_width=16, num_heads=16))
    dimoo = RotaryShortcut(
        RotaryShortcutConfig(width=8, bottleneck_width=64, num_heads=32, mlp_width=12, num_blocks=1)
    )
    paths = folder / "maskgit-shortcut.pth", folder / "dimoo-shortcut.pth"
    for path, shortcut in zip(paths, (maskgit, dimoo), strict=True):
        torch.save(shortcut.state_dict(), path)
    return paths


def write_meissonic(folder: Path, model: Meissonic) -> Path:
    """A model in a folder laid out as upstream's, with what such folders have beside weights."""
    text = model.text_encoder
    for name in ("transformer", "vqvae", "text_encoder", "scheduler"):
        (folder / name).mkdir(parents=True)
    write(folder / "transformer", model.transformer.state_dict())
    write(folder / "vqvae", model.codec.vq.state_dict())
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


def write_dimoo(folder: Path) -> Path:
    """A checkpoint laid out as the released one: two shards in bfloat16, `vqvae/`, a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    state = {key: value.bfloat16() for key, value in Backbone(DIMOO_BACKBONE).state_dict().items()}
    names = {key: f"model-{1 + ('blocks' in key)}.safetensors" for key in state}
    for name in set(names.values()):
        save_file({key: state[key].clone() for key in state if names[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps(DIMOO_SETTINGS))
    (folder / "vqvae").mkdir()
    codec = build_vq_codec(DIMOO_CODEC)
    save_file(codec.vq.state_dict(), folder / "vqvae" / "diffusion_pytorch_model.safetensors")
    (folder / "vqvae" / "config.json").write_text(json.dumps(dict(codec.vq.config), default=list))
    words = dict(zip(TEXT.split(), NULL, strict=True)) | {"<unknown>": 0}
    core = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([word for word in words if word.startswith("<")])
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    return folder


def write(folder: Path, state: dict[str, Tensor], name: str = "diffusion_pytorch_model.safetensors") -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
