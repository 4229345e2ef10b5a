"""Tiny models shared by the tests: the reference models of tests/golden behind our own contracts."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import swiftmask
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.vq_codec import VQConfig, build_vq_codec
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, write_shortcut
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.layout import Vocabulary
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.prompts import WordPrompts
from swiftmask.models.lumina_dimoo.weights import infer_backbone_config
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.network import Network, NetworkConfig
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.models.meissonic import Meissonic
from swiftmask.models.meissonic import weights as meissonic_weights
from swiftmask.models.meissonic.network import Transformer as MeissonicTransformer
from swiftmask.models.meissonic.text import TextConfig, build_text_encoder, word_tokenizer
from swiftmask.serve.catalogue import Accelerators, Catalogue
from tests.processes import ended_well, start

TESTS = Path(__file__).parent
GOLDEN, REHEARSAL = TESTS / "golden", TESTS / "rehearsal"

LONGEST = (
    "test_compiled.py",
    "test_train_your_own.py",
    "cli/test_bench.py",
    "hostile/test_loaders.py",
    "recipes/test_base_model.py",
    "cli/test_tune.py",
    "recipes/test_marval_recipe.py",
    "cli/test_demo.py",
    "cli/test_bench_speed.py",
    "cli/test_speed_rl_benchmarks.py",
    "cli/test_marval.py",
    "serve/test_server.py",
    "recipes/test_emoji_presets.py",
    "recipes/test_speed_rl_recipe.py",
    "serve/test_batches.py",
)
"""Files of more than ten seconds of a CPU, by how long they take."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The rehearsal gives PyTorch a device for as long as its process lives, so it runs in one of its own."""
    named = any(REHEARSAL.name in argument for argument in config.args)
    return True if collection_path == REHEARSAL and not named else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no process begins one when the others are done."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path.relative_to(TESTS)), len(places)))


@pytest.fixture(scope="session")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """`in_processes(script, *arguments, count=2)`: that many Python processes that know of each other, as
    torchrun would start them; every one has to end well. `count=None` is one that knows of no others.
    """

    def run(script: Path, *arguments: Path | str, count: int | None) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        ours = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(count or 0)]
        folder = tmp_path_factory.mktemp("processes")
        said = [folder / f"{place}.txt" for place in range(count or 1)]
        ended_well(
            [start(script, arguments, path, each) for path, each in zip(said, ours or [{}], strict=True)],
            said,
        )

    return run


@pytest.fixture(scope="session")
def golden_maskgit() -> MaskGIT:
    """The golden transformer (4x4 tokens, 32 codes, 7 classes) with an untrained codec."""
    sizes = json.loads((GOLDEN / "maskgit_transformer.json").read_text())["config"]
    config = TransformerConfig(
        width=sizes["hidden_dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_width=sizes["mlp_dim"],
        codebook_size=sizes["codebook_size"],
        num_classes=sizes["nclass"],
        grid=sizes["grid"],
    )
    transformer = Transformer(config)
    transformer.load_state_dict(golden_state("maskgit_transformer"))
    codec = VQGANConfig(
        ch=32,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=8,
        z_channels=8,
        n_embed=32,
        embed_dim=8,
    )
    return MaskGIT(transformer, VQGAN(codec)).requires_grad_(False)


@pytest.fixture(scope="session")
def golden_shortcut() -> Shortcut:
    """The golden shortcut of that transformer."""
    sizes = json.loads((GOLDEN / "maskgit_shortcut.json").read_text())["config"]
    config = ShortcutConfig(
        width=sizes["hidden_dim"],
        bottleneck_width=round(sizes["hidden_dim"] / sizes["bottleneck_ratio"]),
        num_blocks=sizes["n_block"],
        num_heads=sizes["num_heads"],
    )
    shortcut = Shortcut(config).eval()
    shortcut.load_state_dict(golden_state("maskgit_shortcut"))
    return shortcut.requires_grad_(False)


@pytest.fixture(scope="session")
def golden_mar() -> MAR:
    """The golden MAR (4x4 tokens of 4 channels, 5 classes; 3 denoising steps) with an untrained codec."""
    sizes = json.loads((GOLDEN / "mar.json").read_text())["config"]
    config = NetworkConfig(
        encoder_width=sizes["encoder_embed_dim"],
        encoder_depth=sizes["encoder_depth"],
        encoder_heads=sizes["encoder_num_heads"],
        decoder_width=sizes["decoder_embed_dim"],
        decoder_depth=sizes["decoder_depth"],
        decoder_heads=sizes["decoder_num_heads"],
        channels=sizes["vae_embed_dim"],
        grid=4,
        num_classes=sizes["class_num"],
        buffer_size=sizes["buffer_size"],
        head_width=sizes["diffloss_w"],
        head_depth=sizes["diffloss_d"],
    )
    network = Network(config)
    network.load_state_dict(golden_state("mar"))
    codec = KLConfig(
        ch=16,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=8,
        z_channels=4,
        num_groups=8,
    )
    sampling = SamplingOptions(guidance=3.0, denoising_steps=3)
    return MAR(network, KLCodec(codec), sampling=sampling).requires_grad_(False)


@pytest.fixture(scope="session")
def golden_dimoo() -> LuminaDiMOO:
    """The golden backbone (4x4 tokens, 24 codes) with six words for prompts and an untrained codec."""
    sizes = json.loads((GOLDEN / "dimoo_llada.json").read_text())["config"]
    state = golden_state("dimoo_llada")
    backbone = Backbone(infer_backbone_config(state, sizes))
    backbone.load_state_dict(state)
    codec = build_vq_codec(
        VQConfig(
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            num_vq_embeddings=24,
            norm_num_groups=4,
        )
    )
    words = ("a", "red", "circle", "on", "blue", "background")
    vocabulary = Vocabulary(
        mask=90,
        newline=60,
        image_start=61,
        image_end=62,
        answer_start=63,
        answer_end=88,
        first_code=64,
        codebook_size=24,
    )
    model = LuminaDiMOO(backbone, codec, WordPrompts(words), vocabulary=vocabulary, grid=(4, 4))
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def golden_meissonic() -> Meissonic:
    """The golden transformer on 4x4 tokens (32 codes, blocks on 2x2), with an untrained codec and an
    untrained text encoder of nine words.
    """
    state = golden_state("meissonic_transformer")
    config = meissonic_weights.infer_transformer_config(state, rotary_axes=(4, 4, 4))
    transformer = MeissonicTransformer(config)
    transformer.load_state_dict(state)
    words = "a small large red blue circle square left right".split()
    text = TextConfig(
        vocab_size=12,
        hidden_size=20,
        intermediate_size=24,
        projection_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        eos_token_id=0,
    )
    codec = VQConfig(
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=32,
        norm_num_groups=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_text_encoder(text, word_tokenizer(words, length=8))
        model = Meissonic(transformer, encoder, build_vq_codec(codec), size=(8, 8))
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, golden_maskgit: MaskGIT) -> Path:
    """A model folder of seven unnamed classes and 8x8 images, as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    golden_maskgit.save_pretrained(folder, provenance={"measured": {"judge_score": 0.5}})
    return folder


@pytest.fixture(scope="session")
def tiny_shortcut_folder(
    tmp_path_factory: pytest.TempPathFactory, golden_maskgit: MaskGIT, golden_shortcut: Shortcut
) -> Path:
    """The shortcut folder of that model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-shortcut"
    write_shortcut(folder, golden_shortcut, base=golden_maskgit.spec, provenance={}, base_name="tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder: Path) -> swiftmask.Pipeline:
    """That model, loaded."""
    return swiftmask.load(tiny_folder)


@pytest.fixture(scope="session")
def tiny_catalogue(tiny_pipeline: swiftmask.Pipeline, tiny_shortcut_folder: Path) -> Catalogue:
    """What a server of that model offers: itself, its shortcut, feature reuse."""
    accelerators = Accelerators(shortcut=[str(tiny_shortcut_folder)], caching=["reuse"])
    return Catalogue.of(tiny_pipeline, accelerators)


def golden_state(name: str) -> dict[str, Tensor]:
    """The weights of a golden file."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
