"""MAR behind the contract of a base model (core/protocol.py: MaskedGenerator and DenoisingModel).

Tokens are real-valued latents, decided in a random order fixed before the loop, each by the diffusion head
(Li et al., arXiv 2406.11838, section 3.5). The features are the head's conditions z. The first step sees no
token, so its features depend on the class alone: they are computed once per class and kept.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from swiftmask.core.classes import class_number
from swiftmask.core.compiled import RepeatedBlocks
from swiftmask.core.files import write_model
from swiftmask.core.portions import in_portions
from swiftmask.core.protocol import Noise, SamplingOptions, Spec, UnmaskRule
from swiftmask.core.schedule import constant_guidance, mar_schedule, rising_guidance, with_denoising
from swiftmask.core.settings import about
from swiftmask.core.tokens import gather_rows
from swiftmask.core.types import Canvas, Step
from swiftmask.core.unmask import by_order, order_masked
from swiftmask.models.mar.cache import WeightsCache
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.diffusion import reverse_chain, training_process
from swiftmask.models.mar.head import DiffusionTokens
from swiftmask.models.mar.network import GuidanceSchedule, KnownTokens, Network
from swiftmask.models.mar.weights import RELEASED, Settings, read_model, read_released

_CURVES = {"linear": rising_guidance, "constant": constant_guidance}

_RELEASED_GUIDANCE = {"mar-b": 2.9, "mar-l": 3.0, "mar-h": 3.2}
RELEASED_SAMPLING = SamplingOptions(guidance=2.9, temperature=1.0, denoising_steps=100, sampler="ancestral")
"""Defaults of the released models; their guidance differs by size."""

RELEASED_STEPS = 64
"""Decode steps of upstream's sampling script. Its published FID is of 256; of 64, third parties measured the
same within 0.04 (MAR-B 2.32 against 2.31).
"""

KEPT_CLASSES = 64
"""Classes whose first features are kept; one takes 256 x 768 numbers in MAR-B."""


@dataclass(frozen=True, slots=True)
class ClassCondition:
    """Classes of the images, known to the host too, which decides by them what to compute anew.

    Attributes:
        labels_B: int64 [B].
    """

    labels: tuple[int, ...]
    labels_B: Tensor
    num_branches: int

    def __len__(self) -> int:
        return len(self.labels)


class MAR(nn.Module):
    """A class-conditional masked generator of continuous tokens: encoder-decoder, diffusion head, KL codec.

    Args:
        sampling: defaults of the schedule.
        steps: default number of decode steps.
        guidance_schedule: how guidance grows over a decode: with the share of decided tokens, or not at all.
        class_names: one name per class; labels may then be given by name.

    Errors: ValueError if the codec's latents are not what the network reads.
    """

    def __init__(
        self,
        network: Network,
        codec: KLCodec,
        *,
        sampling: SamplingOptions = RELEASED_SAMPLING,
        steps: int = RELEASED_STEPS,
        guidance_schedule: GuidanceSchedule = "linear",
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        _check_codec(network, codec)
        if guidance_schedule not in _CURVES:
            raise ValueError(f"guidance_schedule must be {' or '.join(_CURVES)}, got {guidance_schedule!r}")
        self.network = network
        self.codec = codec
        self.sampling = sampling.over(RELEASED_SAMPLING)
        self.steps = steps
        self.guidance_schedule: GuidanceSchedule = guidance_schedule
        self.class_names = tuple(class_names)
        self._first_features = WeightsCache(KEPT_CLASSES + 1)
        self.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """From a model folder: float32, on the CPU. Errors name the missing or foreign file, key or shape."""
        network, codec, settings = read_model(folder)
        with about(str(Path(folder) / "config.json")):
            return cls(
                network,
                codec,
                sampling=settings.sampling or RELEASED_SAMPLING,
                steps=settings.steps or RELEASED_STEPS,
                guidance_schedule=settings.guidance_schedule,
                class_names=settings.class_names,
            )

    @classmethod
    def from_released(
        cls, network_path: str | Path, codec_path: str | Path, *, num_heads: int | None = None
    ) -> Self:
        """From upstream's `.pth` (or the safetensors mirror) and `kl16.ckpt`; sizes are read off the tensors.

        Args:
            num_heads: of a network that has none of the released widths.
        """
        network, codec = read_released(network_path, codec_path, num_heads=num_heads)
        names = [name for name, config in RELEASED.items() if config == network.config]
        guidance = _RELEASED_GUIDANCE[names[0]] if names else None
        return cls(network, codec, sampling=SamplingOptions(guidance=guidance))

    def save_pretrained(
        self, folder: str | Path, *, provenance: Mapping[str, object], dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the folder `from_pretrained` reads, each file whole or not at all."""
        settings = Settings(
            model="mar",
            network=self.network.config,
            codec=self.codec.config,
            sampling=self.sampling,
            steps=self.steps,
            guidance_schedule=self.guidance_schedule,
            class_names=self.class_names,
        )
        parts = {"network": self.network, "codec": self.codec}
        write_model(folder, settings, parts, provenance=provenance, dtype=dtype)

    @property
    def spec(self) -> Spec:
        sizes = self.network.config
        return Spec(
            name="mar",
            draws="class",
            grid=(sizes.grid, sizes.grid),
            width=sizes.decoder_width,
            codebook_size=None,
            channels=sizes.channels,
            mask_id=0,
            has_log_prob=False,
            num_classes=sizes.num_classes,
        )

    @property
    def device(self) -> torch.device:
        return self.network.fake_latent.device

    @property
    def signal_T(self) -> Tensor:  # noqa: N802 - axes in the name
        """Cumulative product of 1 - beta at each timestep of training: float64 [1000]."""
        return training_process().signal_S.to(self.device)

    def encode(self, what: Sequence[str] | Sequence[int]) -> ClassCondition:
        """Class labels, as numbers from 0 or as class names.

        Errors: ValueError naming the first label the model does not know.
        """
        num_classes = self.network.config.num_classes
        labels = tuple(class_number(entry, num_classes, self.class_names) for entry in what)
        return ClassCondition(labels, torch.tensor(labels, dtype=torch.int64).to(self.device), 1)

    def with_null(self, condition: ClassCondition) -> ClassCondition:
        return ClassCondition(condition.labels, condition.labels_B, 2)

    def features(self, canvas: Canvas, condition: ClassCondition) -> Tensor:
        """The head's conditions z at every position [G, B, L, D]."""
        if canvas.num_masked == self.spec.num_tokens and not self.training:
            z_XLD = self._features_of_nothing(condition)
        else:
            classes_XD = self.network.class_vectors(condition.labels_B)
            if condition.num_branches == 2:
                classes_XD = torch.cat([classes_XD, self.network.null_vectors(len(condition))])
            z_XLD = self.network(KnownTokens.of(canvas), classes_XD)
        return z_XLD.unflatten(0, (condition.num_branches, len(condition)))

    def tokens(self, features_GBTD: Tensor, positions_BM: Tensor, guidance: float) -> DiffusionTokens:
        """The head at `positions_BM`; unguided, it sees the conditional branch alone."""
        branches_GBTD = features_GBTD[:1] if guidance == 1.0 else features_GBTD
        context_GBMD = gather_rows(branches_GBTD, positions_BM)
        return DiffusionTokens(self.network.head, context_GBMD, positions_BM, guidance)

    def denoise(self, noisy_XC: Tensor, timesteps_X: Tensor, context_XD: Tensor) -> Tensor:
        """The noise the head sees in noisy tokens, unguided: float32 [X, C]."""
        predicted_XE = self.network.head(noisy_XC, timesteps_X, context_XD)
        return predicted_XE[..., : self.network.config.channels].float()

    def network_parameters(self) -> list[str]:
        names = [f"network.{name}" for name, _ in self.network.named_parameters()]
        return [name for name in names if name != "network.fake_latent"]

    def head_parameters(self) -> list[str]:
        return [name for name in self.network_parameters() if name.startswith("network.diffloss.")]

    def embed(self, tokens_BN: Tensor, positions_BN: Tensor) -> Tensor:
        """Projected tokens plus the encoder's positions [B, N, D], for tokens [B, N, C]."""
        return self.network.embed(tokens_BN, positions_BN)

    def to_pixels(self, tokens_BL: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of tokens [B, L, C]."""
        latent_BCHW = to_latents(tokens_BL, self.network.config.patch_size)
        return in_portions(self.codec.decode, latent_BCHW, num_pixels=self.codec.config.resolution**2)

    def to_tokens(self, images_B3HW: Tensor) -> Tensor:
        """Tokens [B, L, C] of images in [0, 1], without sampling noise (start canvases for inpainting)."""
        return to_patches(self.codec.encode(images_B3HW), self.network.config.patch_size)

    def blank(self, batch: int) -> Canvas:
        shape = (batch, self.spec.num_tokens, self.network.config.channels)
        return Canvas.blank(torch.zeros(shape, device=self.device))

    def repeated_blocks(self) -> RepeatedBlocks:
        network = self.network
        return RepeatedBlocks(
            (*network.encoder_blocks, *network.decoder_blocks), tuple(network.head.res_blocks)
        )

    def schedule(self, num_steps: int, *, num_masked: int, options: SamplingOptions) -> list[Step]:
        """MAR's schedule with the model's defaults where `options` says nothing.

        Errors: ValueError for step counts that the canvas or the sampler cannot do.
        """
        chosen = options.over(self.sampling)
        assert chosen.guidance is not None
        assert chosen.temperature is not None
        assert chosen.denoising_steps is not None
        steps = mar_schedule(
            num_masked,
            num_steps,
            guidance=chosen.guidance,
            temperature=chosen.temperature,
            guidance_curve=_CURVES[self.guidance_schedule],
            schedule_power=chosen.power,
        )
        steps = with_denoising(
            steps,
            chosen.denoising_steps,
            deterministic=chosen.sampler == "ddim",
            noisiest=chosen.noisiest_timestep,
        )
        for denoising in {step.denoising for step in steps if step.denoising is not None}:
            reverse_chain(denoising)  # fails here rather than in the middle of the decode
        return steps

    def unmask_rule(self, canvas: Canvas, noise: Noise) -> UnmaskRule:
        """A random order for each image; upstream decides a permutation from its end to its front."""
        order_BL = noise.permutation(self.spec.num_tokens).flip(1)
        return by_order(order_masked(order_BL, canvas))

    def _apply(self, fn, recurse: bool = True) -> Self:
        self._first_features.clear()
        return super()._apply(fn, recurse)

    def _features_of_nothing(self, condition: ClassCondition) -> Tensor:
        """z [G * B, L, D] of blank canvases: one forward for the classes that are not kept yet."""
        null = [None] * len(condition) * (condition.num_branches - 1)
        wanted: list[int | None] = [*condition.labels, *null]
        keeping = not torch.is_grad_enabled()
        found = self._first_features.kept(self.network) if keeping else {}
        missing = [label for label in dict.fromkeys(wanted) if label not in found]
        if missing:
            rows_XLD = self._features_of_classes(missing, condition)
            # Cloned, since a view of one row would keep all of them alive.
            fresh: dict[Hashable, Tensor] = {
                label: row.clone() for label, row in zip(missing, rows_XLD, strict=True)
            }
            found |= fresh
            if keeping:
                self._first_features.keep(fresh)
        return torch.stack([found[label] for label in wanted])

    def _features_of_classes(self, labels: Sequence[int | None], condition: ClassCondition) -> Tensor:
        """z [X, L, D] of blank canvases for some classes of `condition` and, where the last is None, for no
        class.
        """
        classes_XD = self.network.null_vectors(sum(label is None for label in labels))
        places = [condition.labels.index(label) for label in labels if label is not None]
        if places:
            labels_X = torch.stack([condition.labels_B[place] for place in places])
            classes_XD = torch.cat([self.network.class_vectors(labels_X), classes_XD])
        return self.network(KnownTokens.of(self.blank(len(labels))), classes_XD)


def to_patches(latent_BCHW: Tensor, patch_size: int) -> Tensor:
    """Latents to tokens [B, L, C * p * p] in raster order, features ordered (channel, row, column)."""
    p = patch_size
    patches = latent_BCHW.unflatten(2, (-1, p)).unflatten(4, (-1, p))  # B C h p w p
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def to_latents(tokens_BLC: Tensor, patch_size: int) -> Tensor:
    """The inverse of `to_patches`, for a square grid of tokens: [B, C, H, W]."""
    p, side = patch_size, round(tokens_BLC.shape[1] ** 0.5)
    patches = tokens_BLC.unflatten(1, (side, side)).unflatten(3, (-1, p, p))  # B h w C p p
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _check_codec(network: Network, codec: KLCodec) -> None:
    sizes = network.config
    channels, grid = codec.config.z_channels * sizes.patch_size**2, codec.config.grid // sizes.patch_size
    if (channels, grid) != (sizes.channels, sizes.grid):
        raise ValueError(
            f"this codec does not fit this MAR: the network reads {sizes.grid}x{sizes.grid} tokens of "
            f"{sizes.channels} channels, the codec gives {grid}x{grid} of {channels}: use the codec it was "
            "trained with (kl16 for the released models)"
        )
