"""Every loader of files: what makes a sound, tiny file for it, and which of its files are damaged how."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model
from verify.cases import read_case

from swiftmask.api import accelerate, load
from swiftmask.core.files import write_folder
from swiftmask.core.settings import read_json
from swiftmask.data.emoji.build import read_records
from swiftmask.data.encoded import encoded_images
from swiftmask.data.images.decode import read_image
from swiftmask.data.prompts import read_prompts
from swiftmask.data.sources.folder import FolderSource
from swiftmask.evaluate.extractors import Identity, load_extractor
from swiftmask.evaluate.feature_store import FeatureStore
from swiftmask.evaluate.presets import read_preset, write_preset
from swiftmask.evaluate.quantities import Quantity, Spread
from swiftmask.evaluate.statistics import FeatureStatistics, read_moments
from swiftmask.evaluate.summary import Report, RowSummary, read_report, write_report
from swiftmask.methods.marval import make_student, write_student
from swiftmask.methods.shortcut import write_shortcut
from swiftmask.methods.shortcut.weights import read_shortcut
from swiftmask.methods.speed_rl import TuningConfig, make_policy, write_policy
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.weights import read_released, read_released_codec
from swiftmask.registry import describe
from swiftmask.rewards.aesthetic import WEIGHTS_FILE as AESTHETIC
from swiftmask.rewards.aesthetic import read_head
from swiftmask.rewards.clip import load_clip_score
from swiftmask.rewards.hps import WEIGHTS_FILE as HPS
from swiftmask.rewards.hps import load_hps
from swiftmask.rewards.scenes import load_reader
from swiftmask.rewards.scenes_networks import ReaderConfig, ReaderNetwork
from swiftmask.training.checkpoint import Reached, load_checkpoint, save_checkpoint
from swiftmask.training.metrics import cut_log
from tests.evaluate.test_presets import PLACED, preset_of
from tests.released_layouts import write_dimoo, write_maskgit, write_meissonic, write_shortcuts
from tests.rewards.test_hps import BEGIN, END, OpenClip, write_processor

Models = Mapping[str, Any]
"""The golden models, by family, and "shortcut"."""


@dataclass(frozen=True)
class Loader:
    """A loader of files.

    Attributes:
        make: writes sound files into a folder.
        load: reads them.
        files: the kind of each file that is damaged (damages.py).
        undecided: damages of files that no loader can tell, with the reason.
    """

    make: Callable[[Path, Models], object]
    load: Callable[[Path, Models], object]
    files: dict[str, str]
    undecided: Mapping[str, str] = field(default_factory=dict)


def plain(folder: Path, _: Models) -> object:
    return load(folder).model


KL = KLConfig(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=4, z_channels=4)


def write_mar(folder: Path, models: Models) -> None:
    mar, codec = models["mar"], KLCodec(KL)
    trained = {"model": mar.network.state_dict(), "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save({**trained, "model_ema": mar.network.state_dict()}, folder / "checkpoint-last.pth")
    torch.save({"model": codec.state_dict()}, folder / "kl16.ckpt")
    save_file(mar.network.state_dict(), folder / "mar.safetensors")
    save_file(codec.state_dict(), folder / "kl16.safetensors")


def write_sharded(folder: Path, models: Models) -> None:
    dimoo = models["dimoo"]
    dimoo.save_pretrained(folder, provenance={})
    state = {f"{name}.{k}": v for name in ("backbone", "codec")
             for k, v in getattr(dimoo, name).state_dict().items()}  # fmt: skip
    config, made_by = (read_json(folder / f"{name}.json") for name in ("config", "provenance"))
    write_folder(folder, state, config=config, provenance=made_by, dtype=torch.float32, shard_bytes=20_000)


def write_student_of_mar(folder: Path, models: Models) -> None:
    student = make_student(models["mar"], models["mar"].head_parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.01 if parameter.requires_grad else 1.0)
    write_student(folder, student, provenance={}, base_name="golden")


def write_adapters(folder: Path, models: Models) -> None:
    tuning = TuningConfig(targets=r"transformer\.transformer\..*\.(net\.\d|out_proj)", lora_r=2, lora_alpha=4)
    policy = make_policy(models["maskgit"], tuning)
    with torch.no_grad():
        for parameter in trained_parameters(policy).values():
            parameter.add_(0.1)
    write_policy(folder, policy, tuning=tuning, provenance={})


def write_reader(folder: Path, _: Models) -> None:
    config = ReaderConfig(network="residual", width=16, num_features=8)
    write_folder(
        folder,
        ReaderNetwork(config).state_dict(),
        config=dataclasses.asdict(config),
        provenance={},
        dtype=torch.float32,
    )


POSITIONS = "text_model.embeddings.position_embedding.weight"
LAYERS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_clip(folder: Path, _: Models) -> None:
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": 40, "max_position_embeddings": 12, "intermediate_size": 32, **LAYERS, **ids}
    vision = {"image_size": 16, "patch_size": 4, "intermediate_size": 32, **LAYERS}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    write_preprocessing(folder)


def write_preprocessing(folder: Path) -> None:
    content = {"size": 16, "crop_size": 16, "image_mean": [0.5] * 3, "image_std": [0.3] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def write_pickled_clip(folder: Path, models: Models) -> None:
    write_clip(folder, models)
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(dict(model.state_dict()), folder / "pytorch_model.bin")


def write_hps(folder: Path, _: Models) -> None:
    torch.save({"state_dict": OpenClip().state_dict()}, folder / HPS)
    write_processor(folder, {"<|startoftext|>": BEGIN, "<|endoftext|>": END})


def write_aesthetic(folder: Path, _: Models) -> None:
    sizes = dict(zip((0, 2, 4, 6, 7), zip((8, 7, 6, 5, 4), (7, 6, 5, 4, 1), strict=True), strict=True))
    state = {}
    for place, (width_in, width_out) in sizes.items():
        state |= {f"layers.{place}.{k}": v for k, v in nn.Linear(width_in, width_out).state_dict().items()}
    torch.save(state, folder / AESTHETIC)


def write_vision(folder: Path, _: Models) -> None:
    Dinov2Model(Dinov2Config(image_size=16, patch_size=8, mlp_ratio=1, **LAYERS)).save_pretrained(folder)
    write_preprocessing(folder)


class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return images_B3HW.mean(dim=(2, 3)) * self.weight


def write_script(folder: Path, _: Models) -> None:
    torch.jit.script(Means()).save(str(folder / "means.pt"))  # pyright: ignore[reportAttributeAccessIssue]


def write_statistics(folder: Path, _: Models) -> None:
    features_XD = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    statistics = FeatureStatistics.of(features_XD)
    statistics.save(folder / "ours.safetensors", extractor="0" * 64)
    moments = statistics.moments()
    np.savez(folder / "theirs.npz", mu=moments.mean_D.numpy(), sigma=moments.covariance_DD.numpy())


def store_of(folder: Path) -> FeatureStore:
    return FeatureStore(folder, Identity("toy", "0" * 64), "pictures", 5)


def write_features(folder: Path, _: Models) -> None:
    store = store_of(folder)
    store.begin()
    logits_BV = torch.rand(5, 3).log_softmax(dim=1)
    store.write(0, {"features": torch.rand(5, 4), "log_probabilities": logits_BV}, {"alpha": 2})


def read_features(folder: Path, _: Models) -> object:
    store = store_of(folder)
    store.begin()
    return store.changes(), store.readings()


def encode_images(folder: Path, _: Models) -> object:
    for place in range(4):
        path = folder / "images" / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", (8, 8), (60 * place, 9, 9)).save(path)
    images = FolderSource(folder / "images")
    found = encoded_images(images, 8, lambda x_B3HW: x_B3HW[:, :2, ::4, ::4], folder / "cache", encoder="toy")
    return found.items, found.rows(torch.arange(len(found)))


def trained() -> tuple[dict[str, nn.Module], list[torch.optim.Optimizer]]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"model": model}, [optimizer]


def write_checkpoint(folder: Path, _: Models) -> None:
    save_checkpoint(folder / "checkpoint.safetensors", *trained(), Reached(3, {"loss": (1.0, 2)}), "toy")


def read_checkpoint(folder: Path, _: Models) -> object:
    parts = trained()
    reached = load_checkpoint(folder / "checkpoint.safetensors", *parts, "toy", num_steps=5)
    assert reached is not None
    return reached, parts[0]["model"]


def write_quality_report(folder: Path, _: Models) -> None:
    spread = Spread(0.5, 0.1)
    row = RowSummary(
        name="vanilla-8", series="vanilla", steps=8, full_steps=8, calls={"backbone": 8}, gflop=1.0, ms=1.0,
        peak_memory_bytes=1, values={"score": spread}, equal_cost={"score": 0.5},
    )  # fmt: skip
    score = Quantity(key="score", label="judge score", higher_is_better=True)
    report = Report(
        model="toy", commit="a", date="b", machine="c", command="d", N=4, seeds=2, batch_size=2,
        quantities=[score], floors={"score": spread}, notes=["n"], rows=[row],
    )  # fmt: skip
    write_report(report, folder / "report.json")


def write_log(folder: Path, _: Models) -> None:
    (folder / "log.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(5)))


def read_log(folder: Path, _: Models) -> None:
    cut_log(folder / "log.jsonl", 3)


def write_prompts(folder: Path, _: Models) -> None:
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "seed": 3}\n{"prompt": "c"}\n')
    (folder / "prompts.csv").write_text("prompt,seed\na circle,3\na square,4\n")
    (folder / "prompts.txt").write_text("a circle\na square\n")


def write_metadata(folder: Path, _: Models) -> None:
    records = read_records(Path(__file__).parents[2] / "data" / "emoji")[:3]
    lines = [json.dumps(dataclasses.asdict(record)) + "\n" for record in records]
    (folder / "metadata.jsonl").write_text("".join(lines))


def write_image(folder: Path, _: Models) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for suffix in ("png", "tiff", "webp", "bmp", "gif"):
        Image.fromarray(pixels).save(folder / f"picture.{suffix}")


def of_suffix(read: Callable[[Path], object], *names: str) -> Callable[[Path, Models], object]:
    return lambda folder, _: [read(folder / name) for name in names]


OWN = {"config.json": "json", "model.safetensors": "safetensors"}
CODEC = {"vqvae/config.json": "foreign json", "vqvae/diffusion_pytorch_model.safetensors": "safetensors"}

LOADERS = {
    "MaskGIT as released": Loader(
        lambda folder, _: write_maskgit(folder, grid=4),
        lambda folder, _: (
            load(folder / "MaskGIT" / "MaskGIT_ImageNet_64.pth", codec=folder / "VQGAN" / "last.ckpt").model
        ),
        {"MaskGIT/MaskGIT_ImageNet_64.pth": "pickle", "VQGAN/last.ckpt": "pickle"},
    ),
    "MAR as released": Loader(
        write_mar,
        lambda folder, _: read_released(folder / "checkpoint-last.pth", folder / "kl16.ckpt", num_heads=4),
        {"checkpoint-last.pth": "pickle"},
    ),
    "the codec of MAR": Loader(
        write_mar, of_suffix(read_released_codec, "kl16.ckpt"), {"kl16.ckpt": "pickle"}
    ),
    "MAR of a mirror": Loader(
        write_mar,
        lambda folder, _: read_released(folder / "mar.safetensors", folder / "kl16.safetensors", num_heads=4),
        {"mar.safetensors": "safetensors", "kl16.safetensors": "safetensors"},
    ),
    "Meissonic as released": Loader(
        lambda folder, models: write_meissonic(folder / "m", models["meissonic"]).rename(
            folder / "Meissonic"
        ),
        lambda folder, _: load(folder / "Meissonic").model,
        {
            f"Meissonic/{name}": kind
            for name, kind in {
                "transformer/config.json": "foreign json",
                "transformer/diffusion_pytorch_model.safetensors": "safetensors",
                "text_encoder/config.json": "foreign json",
                "text_encoder/model.safetensors": "safetensors",
                "scheduler/scheduler_config.json": "foreign json",
                "tokenizer/tokenizer.json": "foreign json",
                **CODEC,
            }.items()
        },
        {f"model.safetensors: {POSITIONS} one row longer": "a model of longer texts"},
    ),
    "Lumina-DiMOO as released": Loader(
        lambda folder, _: write_dimoo(folder),
        lambda folder, _: load(folder).model,
        {
            "config.json": "foreign json",
            "model.safetensors.index.json": "foreign json",
            "model-2.safetensors": "safetensors",
            "tokenizer.json": "foreign json",
            **CODEC,
        },
    ),
    "MaskGIT": Loader(
        lambda folder, models: models["maskgit"].save_pretrained(folder, provenance={}), plain, OWN
    ),
    "MAR": Loader(lambda folder, models: models["mar"].save_pretrained(folder, provenance={}), plain, OWN),
    "Meissonic": Loader(
        lambda folder, models: models["meissonic"].save_pretrained(folder, provenance={}),
        plain,
        {
            **OWN,
            "tokenizer/tokenizer.json": "foreign json",
            "tokenizer/tokenizer_config.json": "foreign json",
        },
        {"tokenizer_config.json: a folder": "transformers needs no tokenizer_config.json"},
    ),
    "Lumina-DiMOO": Loader(
        lambda folder, models: models["dimoo"].save_pretrained(folder, provenance={}), plain, OWN
    ),
    "Lumina-DiMOO in shards": Loader(
        write_sharded,
        plain,
        {"model.safetensors.index.json": "foreign json", "model-00002-of-*.safetensors": "safetensors"},
    ),
    "a shortcut": Loader(
        lambda folder, models: write_shortcut(
            folder, models["shortcut"], base=models["maskgit"].spec, provenance={}
        ),
        lambda folder, models: read_shortcut(folder, base=models["maskgit"].spec),
        OWN,
    ),
    "shortcuts as released": Loader(
        lambda folder, _: write_shortcuts(folder),
        lambda folder, _: [read_shortcut(folder / f"{name}-shortcut.pth") for name in ("maskgit", "dimoo")],
        {"maskgit-shortcut.pth": "pickle", "dimoo-shortcut.pth": "pickle"},
    ),
    "a student of MARVAL": Loader(
        write_student_of_mar,
        lambda folder, models: accelerate(models["pipeline of mar"], marval=folder).model,
        OWN,
    ),
    "weights of Speed-RL": Loader(
        write_adapters,
        lambda folder, models: accelerate(models["pipeline of maskgit"], speed_rl=folder).model,
        OWN,
    ),
    "a reader of Scenes": Loader(write_reader, lambda folder, _: load_reader(folder).network, OWN),
    "CLIP": Loader(
        write_clip,
        lambda folder, _: load_clip_score(folder).similarity.model,
        {
            "config.json": "foreign json",
            "model.safetensors": "safetensors",
            "preprocessor_config.json": "json",
            "tokenizer.json": "foreign json",
            "tokenizer_config.json": "foreign json",
        },
        {"tokenizer_config.json: a folder": "transformers needs no tokenizer_config.json"},
    ),
    "CLIP as a pickle": Loader(
        write_pickled_clip,
        lambda folder, _: load_clip_score(folder).similarity.model,
        {"pytorch_model.bin": "pickle"},
    ),
    "HPS": Loader(
        write_hps,
        lambda folder, _: load_hps(folder, processor=folder).similarity.model,
        {HPS: "pickle"},
        {f"{HPS}: positional_embedding one row longer": "a model of longer texts"},
    ),
    "the aesthetic predictor": Loader(
        write_aesthetic, lambda folder, _: read_head(folder), {AESTHETIC: "pickle"}
    ),
    "an extractor of transformers": Loader(
        write_vision,
        lambda folder, _: described(load_extractor(folder)),
        {
            "config.json": "foreign json",
            "model.safetensors": "safetensors",
            "preprocessor_config.json": "json",
        },
    ),
    "an extractor of TorchScript": Loader(
        write_script, lambda folder, _: described(load_extractor(folder / "means.pt")), {"means.pt": "other"}
    ),
    "statistics": Loader(
        write_statistics,
        of_suffix(read_moments, "ours.safetensors", "theirs.npz"),
        {"ours.safetensors": "safetensors", "theirs.npz": "npz"},
    ),
    "a preset": Loader(
        lambda folder, _: write_preset(preset_of(PLACED), folder / "preset.json"),
        of_suffix(read_preset, "preset.json"),
        {"preset.json": "record"},
    ),
    "a report": Loader(
        write_quality_report, of_suffix(read_report, "report.json"), {"report.json": "record"}
    ),
    "features": Loader(
        write_features,
        read_features,
        {"features.json": "record", "features-00000000.safetensors": "safetensors"},
    ),
    "encoded images": Loader(encode_images, encode_images, {"cache/*/rows-*.safetensors": "safetensors"}),
    "a training's checkpoint": Loader(
        write_checkpoint, read_checkpoint, {"checkpoint.safetensors": "safetensors"}
    ),
    "prompts": Loader(
        write_prompts,
        of_suffix(read_prompts, "prompts.jsonl", "prompts.csv", "prompts.txt"),
        {"prompts.jsonl": "lines", "prompts.csv": "text", "prompts.txt": "text"},
    ),
    "records of Emoji": Loader(
        write_metadata, lambda folder, _: read_records(folder), {"metadata.jsonl": "lines"}
    ),
    "a training's log": Loader(write_log, read_log, {"log.jsonl": "skipped lines"}),
    "provenance": Loader(
        lambda folder, models: models["maskgit"].save_pretrained(folder, provenance={"commit": "a"}),
        lambda folder, _: dataclasses.replace(describe(folder), num_bytes=0),
        {"provenance.json": "foreign json", "config.json": "foreign json"},
        {"provenance.json: an empty object": "whoever made a model may say nothing of it"},
    ),
    "a recorded case": Loader(
        lambda folder, _: [
            (folder / f"a{suffix}").write_bytes(
                (Path(__file__).parents[1] / f"golden/maskgit_vqgan{suffix}").read_bytes()
            )
            for suffix in (".json", ".safetensors")
        ],
        lambda folder, _: read_case(folder, "a"),
        {"a.json": "foreign json", "a.safetensors": "other"},
        {"a.json: an empty object": "a case may need no config"},
    ),
    "pictures": Loader(
        write_image,
        of_suffix(
            lambda path: np.asarray(read_image(path).image), *(f"picture.{s}" for s in ("png", "tiff"))
        ),
        {"picture.png": "picture", "picture.tiff": "picture"},
    ),
}


def described(extractor: Any) -> object:
    """What it says of some pictures."""
    return extractor(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))["features"]


def digest(found: object) -> object:
    """What can be compared of what a loader gave."""
    if isinstance(found, nn.Module):
        config = repr(getattr(found, "config", "")) if not hasattr(found, "base_model_prefix") else ""
        return config, {key: digest(value) for key, value in found.state_dict().items()}
    if isinstance(found, Tensor):
        return tuple(found.shape), zlib.crc32(found.detach().float().contiguous().numpy().tobytes())
    if isinstance(found, np.ndarray):
        return found.shape, zlib.crc32(found.tobytes())
    if dataclasses.is_dataclass(found):
        found = {each.name: getattr(found, each.name) for each in dataclasses.fields(found)}
    if isinstance(found, dict):
        return {key: digest(value) for key, value in found.items() if not isinstance(value, Path)}
    return [digest(value) for value in found] if isinstance(found, list | tuple) else repr(found)
