"""tokenizer: a codec of any images, for codes (MaskGIT, Meissonic, Lumina-DiMOO) or latents (MAR)."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from swiftmask.core.ranges import check_fields
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec
from swiftmask.core.writing import write_bytes
from swiftmask.data.encoded import EncodedImages, Share, encoded_images
from swiftmask.data.images.pixels import to_bytes
from swiftmask.data.sources import DataConfig, Source, held_out, open_source
from swiftmask.evaluate.sheets import side_by_side
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.recipes.codec_training import (
    Codec,
    CodecTrainer,
    Images,
    KLTrainer,
    VQTrainer,
    centre,
    measure_scale,
    pruned,
)
from swiftmask.recipes.provenance import provenance, write_notice
from swiftmask.recipes.runs import OnLog, run_name, training_device
from swiftmask.recipes.tokenizer_files import write_tokenizer
from swiftmask.training.loop import Progress, train
from swiftmask.training.processes import processes
from swiftmask.training.reconstruction import ReconstructionConfig
from swiftmask.training.setup import TrainingConfig, step_seed, train_step

SIZES = {"tiny": (16, 1), "small": (32, 1), "base": (64, 2), "released": (128, 2)}
"""Channels of the first level and residual blocks per level."""

_MULTIPLES = (1, 2, 2, 4, 4, 4)
"""Of the first level's channels, level by level."""

_UNQUANTISED_SHARE = 0.1
"""Of the steps, at the start, without codes (VQTrainer)."""

_SHOWN, _MEASURED, _SCALE_BATCHES = 12, 512, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecipe:
    """Data, sizes, losses and optimisation of a tokenizer.

    Attributes:
        data: a folder of images or another source (data/sources/opening.py).
        kind: "vq" has codes, "kl" Gaussian latents, which MAR needs.
        resolution: side of the images in pixels; they are cropped to squares.
        size: channels and depth: tiny, small, base or released.
        downscale: pixels per token along one side, a power of two.
        channels: of a latent; a code's vector has 16 of its own.
        num_codes: in training, and `kept_codes` afterwards: of the closest pairs the less used codes go. None
            keeps all.
        divergence_weight: of the latents' divergence from the standard normal ("kl").
        mosaics: whether half of the images are put together from quarters of others, so that codes tell about
            their own place alone: group norms see the whole image (docs/log.md).
    """

    data: str = ""
    kind: Literal["vq", "kl"] = "vq"
    resolution: int = 64
    size: Literal["tiny", "small", "base", "released"] = "small"
    downscale: int = 4
    channels: int = 4
    num_codes: int = 1024
    kept_codes: int | None = None
    divergence_weight: float = 1e-4
    mosaics: bool = True
    losses: ReconstructionConfig = ReconstructionConfig()
    source: DataConfig = DataConfig()
    training: TrainingConfig
    name: str = "tokenizer"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.downscale & (self.downscale - 1) or self.downscale > 2 ** (len(_MULTIPLES) - 1):
            raise ValueError(f"downscale must be 1, 2, 4, 8, 16 or 32, got {self.downscale}")
        if self.resolution % self.downscale:
            raise ValueError(
                f"resolution must be a multiple of downscale={self.downscale}, got {self.resolution}"
            )
        if self.kept_codes is not None and self.kept_codes > self.num_codes:
            raise ValueError(f"kept_codes must be at most num_codes={self.num_codes}, got {self.kept_codes}")

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, which base models take as `tokenizer`.

        Errors: ValueError or FileNotFoundError for data that cannot be used.
        """
        source = open_source(self.data, self.source)
        pixels = self.pixels(source, folder / "pixels", on_log)
        out_X = held_out(source, self.source.held_out)[pixels.items]
        trained_X, tested_X = (~out_X).nonzero()[:, 0], out_X.nonzero()[:, 0]
        torch.manual_seed(self.training.seed)
        trainer = self.untrained()
        settings = (self.losses, self.resolution, self.mosaics, source.identity, self.source.held_out)
        shown_X = (tested_X if len(tested_X) else trained_X)[:_SHOWN]

        def on_save(step: int, average: nn.Module) -> None:
            assert isinstance(average, CodecTrainer)
            before = _images(pixels.rows(shown_X))
            after = reconstructed(average.codec.eval(), before.to(training_device()))
            write_bytes(folder / "reconstructions.png", side_by_side([before, after.cpu()]))

        trained = train(
            trainer,
            lambda *place: self.batch(pixels, trained_X, *place),
            train_step,
            self.training,
            folder,
            name=run_name(self.name, trainer, *settings),
            on_log=on_log,
            on_save=on_save,
        )
        codec = self.finished(trained, pixels, trained_X)
        if processes().is_main_process:
            measured = measure(codec, pixels, tested_X if len(tested_X) else trained_X)
            facts = {"measured": measured, "settings": self.settings(), "licence": source.licence}
            facts |= source.facts
            data = f"{source.name}: {len(trained_X)} images, {len(tested_X)} held out"
            made_by = provenance(self.name, self.training, folder, **facts, data=data)
            write_tokenizer(folder / "model", codec, resolution=self.resolution, provenance=made_by)
            write_notice(folder / "model", source.notice)
        processes().wait_for_everyone()
        return folder / "model"

    def settings(self) -> dict[str, object]:
        """What provenance says besides the optimisation."""
        content = asdict(self)
        return {key: content[key] for key in content if key not in ("training", "name")}

    def pixels(self, source: Source, folder: Path, on_log: OnLog | None) -> EncodedImages:
        """The images at the resolution, decoded once."""
        return cached_pixels(source, self.resolution, folder, on_log)

    def untrained(self) -> CodecTrainer:
        """The codec with its losses, at random weights."""
        width, blocks = SIZES[self.size]
        levels = int(math.log2(self.downscale)) + 1
        multiples = _MULTIPLES[:levels]
        if self.kind == "vq":
            config = VQConfig(
                block_out_channels=tuple(width * multiple for multiple in multiples),
                layers_per_block=blocks,
                latent_channels=2 * width,
                num_vq_embeddings=self.num_codes,
                vq_embed_dim=16,
                norm_num_groups=8,
            )
            codec = build_vq_codec(config)
            centre(codec)
            return VQTrainer(codec, self.losses)
        sizes = KLConfig(
            ch=width,
            ch_mult=multiples,
            num_res_blocks=blocks,
            attn_resolutions=(),
            resolution=self.resolution,
            z_channels=self.channels,
            num_groups=8,
        )
        return KLTrainer(KLCodec(sizes), self.losses, self.divergence_weight)

    def batch(self, pixels: EncodedImages, chosen_X: Tensor, step: int, rank: int, num_ranks: int) -> Images:
        """The images of one step, a function of the step alone."""
        generator = torch.Generator().manual_seed(step_seed(self.training.seed, step, rank))
        count = self.training.batch_size // num_ranks
        picked_B = chosen_X[torch.randint(len(chosen_X), (count,), generator=generator)]
        images_B3HW = _images(pixels.rows(picked_B))
        if self.source.mirror:
            flipped_B = torch.rand(count, generator=generator) < 0.5
            images_B3HW = torch.where(flipped_B[:, None, None, None], images_B3HW.flip(-1), images_B3HW)
        if self.mosaics:
            images_B3HW = torch.cat([mosaics(images_B3HW[: count // 2]), images_B3HW[count // 2 :]])
        quantised = step >= _UNQUANTISED_SHARE * self.training.num_steps
        return Images(images_B3HW, self.losses.turn(step), step >= self.losses.adversarial_after, quantised)

    def finished(self, trained: CodecTrainer, pixels: EncodedImages, chosen_X: Tensor) -> Codec:
        """The codec as it is used: with the codes that are kept, or with the scale of its latents."""
        if isinstance(trained, VQTrainer):
            assert isinstance(trained.codec, VQCodec)
            kept = self.kept_codes or self.num_codes
            if kept == self.num_codes:
                return trained.codec.eval()
            return pruned(trained.codec.cpu(), trained.running.count_V.cpu(), kept)
        assert isinstance(trained.codec, KLCodec)
        unscaled, device = trained.codec.eval(), training_device()
        batches = (
            self.batch(pixels, chosen_X, self.training.num_steps + i, 0, 1).images_B3HW.to(device)
            for i in range(_SCALE_BATCHES)
        )
        codec = KLCodec(replace(unscaled.config, scale=measure_scale(unscaled, batches))).eval()
        codec.load_state_dict(unscaled.state_dict())
        return codec


def _images(pixels_B3HW: Tensor) -> Tensor:
    return pixels_B3HW.float() / 255


@torch.no_grad()
def reconstructed(codec: Codec, images_B3HW: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] after encoding and decoding."""
    return codec.decode(codec.encode(images_B3HW)).clamp(0, 1)


@torch.no_grad()
def measure(codec: Codec, pixels: EncodedImages, chosen_X: Tensor) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB (mean over images), and the codes in use, on at most 512 images."""
    codec = codec.to(training_device()).eval()
    ratios: list[Tensor] = []
    used: set[int] = set()
    for part_B in chosen_X[:_MEASURED].split(32):
        before_B3HW = _images(pixels.rows(part_B)).to(training_device())
        error_B = (reconstructed(codec, before_B3HW) - before_B3HW).square().flatten(1).mean(1)
        ratios.append(-10 * error_B.clamp(min=1e-10).log10())
        if isinstance(codec, VQCodec):
            used |= set(codec.encode(before_B3HW).flatten().tolist())
    found: dict[str, float] = {
        "psnr_db": round(float(torch.cat(ratios).mean()), 2),
        "images": len(chosen_X[:_MEASURED]),
    }
    return found | ({"codes_used": len(used)} if used else {})


def mosaics(images_B3HW: Tensor) -> Tensor:
    """Quadrant q of mosaic i is that of image i + q."""
    shifted = [images_B3HW.roll(-quadrant, dims=0) for quadrant in range(4)]
    half = images_B3HW.shape[-1] // 2
    top = torch.cat([shifted[0][:, :, :half, :half], shifted[1][:, :, :half, half:]], dim=3)
    bottom = torch.cat([shifted[2][:, :, half:, :half], shifted[3][:, :, half:, half:]], dim=3)
    return torch.cat([top, bottom], dim=2)


def cached_pixels(source: Source, resolution: int, folder: Path, on_log: OnLog | None) -> EncodedImages:
    """The images of a source, decoded once: uint8 [3, resolution, resolution] each."""
    return encoded_images(
        source,
        resolution,
        to_bytes,
        folder,
        encoder="pixels",
        share=process_share(),
        on_progress=reported(on_log, "decoding images"),
    )


def process_share() -> Share:
    """The part of a cache that this process encodes."""
    here = processes()
    return Share(rank=here.process_index, count=here.num_processes, wait=here.wait_for_everyone)


def reported(on_log: OnLog | None, what: str) -> Callable[[int, int], None] | None:
    """Items done, as progress of a run."""
    if on_log is None:
        return None
    return lambda done, total: on_log(Progress(done, total, 0.0, {}, what))


def recipe() -> TokenizerRecipe:
    """`swiftmask train tokenizer data=products/ resolution=64`."""
    training = TrainingConfig(
        num_steps=4000,
        batch_size=24,
        learning_rate=1e-3,
        muon_learning_rate=4e-3,
        warmup_steps=100,
        precision="no",
        save_every=200,
    )
    return TokenizerRecipe(training=training)
