"""MAR: backbone, head, training loss, reverse chains, and whole decodes from the recorded draws.

Under guidance the reference carries the null branch's tokens through a chain of their own, which its sampler
then discards; ours has one chain, so only the kept half of a recorded chain is compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.files import load_strict
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.types import Denoising, Step
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.diffusion import (
    add_noise,
    noise_error,
    respaced,
    respaced_timesteps,
    training_process,
    variational_bound,
)
from swiftmask.models.mar.generator import GuidanceSchedule, to_latents
from swiftmask.models.mar.head import DiffusionTokens, HeadNetwork
from swiftmask.models.mar.network import KnownTokens, Network, NetworkConfig
from verify.cases import Case, Check, compare, exactly


def check(case: Case) -> list[Check]:
    network, given, expected = build(case), case.group("in"), case.group("out")
    num_steps = int(case.config["num_sampling_steps"])
    outputs = backbone(network, given["tokens"], given["mask"], given["labels"])
    outputs["head"] = network.head(given["head.x_t"], given["head.t"], given["head.c"])
    loss = case.group("in.loss")
    losses = training_loss(network.head, loss["target"], loss["noise"], given["head.t"], given["head.c"])
    outputs |= {f"loss.{name}": value for name, value in losses.items()}
    outputs["diffusion.gen_betas"] = respaced(respaced_timesteps(num_steps)).betas_S
    outputs["diffusion.train_alphas_cumprod"] = training_process().signal_S
    for name in [key for key in case.config if key.startswith("sample_")]:
        outputs[name] = _chain(case, network.head, name)
        expected[name] = expected[name][: len(outputs[name])]
    for name in [key for key in case.config if key.startswith("ar_")]:
        outputs[f"{name}.latents"] = _decode(case, network, name)
    timesteps = exactly("timesteps", respaced_timesteps(num_steps), case.config["respaced_timesteps"])
    return [timesteps, *compare(outputs, expected)]


def build(case: Case) -> Network:
    """The case's own network: sizes from its config, weights from its `state.*`."""
    with torch.device("meta"):
        network = Network(network_config(case.config))
    load_strict(network, case.group("state"), source=case.name)
    return network.eval()


def network_config(sizes: Any) -> NetworkConfig:
    """Sizes under upstream's names to ours."""
    patch_size = sizes["patch_size"]
    return NetworkConfig(
        encoder_width=sizes["encoder_embed_dim"],
        encoder_depth=sizes["encoder_depth"],
        encoder_heads=sizes["encoder_num_heads"],
        decoder_width=sizes["decoder_embed_dim"],
        decoder_depth=sizes["decoder_depth"],
        decoder_heads=sizes["decoder_num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
        channels=sizes["vae_embed_dim"] * patch_size**2,
        grid=sizes["img_size"] // sizes["vae_stride"] // patch_size,
        num_classes=sizes["class_num"],
        buffer_size=sizes["buffer_size"],
        head_width=sizes["diffloss_w"],
        head_depth=sizes["diffloss_d"],
        patch_size=patch_size,
    )


def backbone(network: Network, tokens_BLC: Tensor, mask_BL: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
    """Encoder output, and z with and without the class."""
    masked_BL = mask_BL.bool()
    num_known = int((~masked_BL[0]).sum())
    positions_BN = masked_BL.to(torch.uint8).argsort(dim=1, stable=True)[:, :num_known]
    known = KnownTokens.at(tokens_BLC, positions_BN)
    classes_BD = network.class_vectors(labels_B)
    return {
        "encoder": network.encode(known, classes_BD),
        "z": network(known, classes_BD),
        "z_unconditional": network(known, network.null_vectors(len(labels_B))),
    }


def training_loss(
    head: HeadNetwork, clean_XC: Tensor, noise_XC: Tensor, timesteps_X: Tensor, context_XD: Tensor
) -> dict[str, Tensor]:
    """The loss of every token, its two parts, and the noisy tokens."""
    noisy_XC = add_noise(clean_XC, noise_XC, timesteps_X)
    predicted_XE = head(noisy_XC, timesteps_X, context_XD)
    mse_X = noise_error(predicted_XE, noise_XC)
    bound_X = variational_bound(predicted_XE, clean_XC, noisy_XC, timesteps_X)
    return {"x_t": noisy_XC, "mse": mse_X, "vb": bound_X, "total": mse_X + bound_X}


@dataclass
class RecordedNormals:
    """The reference's draws: rows of all images' tokens of one decode step, each image's in raster order.

    Attributes:
        draws: those that are used (the step at t = 0 draws, too, and ignores it).
        order_BL: the recorded permutation.
    """

    draws: Iterator[Tensor]
    order_BL: Tensor = field(default_factory=lambda: torch.zeros(0))

    def permutation(self, num_tokens: int) -> Tensor:
        return self.order_BL

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        """As many recorded draws as give `channels`, side by side."""
        raster_BM1 = positions_BM.argsort(dim=1).argsort(dim=1)[..., None]
        found: list[Tensor] = []
        while sum(draw.shape[-1] for draw in found) < channels:
            rows_BMC = next(self.draws)[: positions_BM.numel()].unflatten(0, positions_BM.shape)
            found.append(rows_BMC.gather(1, raster_BM1.expand_as(rows_BMC)))
        return torch.cat(found, dim=-1)

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        raise ValueError("these draws are normal: expected a model of continuous tokens")

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        raise ValueError("these draws are normal: expected a model of continuous tokens")

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor:
        raise ValueError("these draws are normal: expected a model of continuous tokens")


def reverse_chain_of(
    head: HeadNetwork, noises: Sequence[Tensor], context_XD: Tensor, *, guidance: float, temperature: float
) -> Tensor:
    """Tokens [X, C] of one recorded chain: its start, then a draw for each of its steps."""
    num_branches = 1 if guidance == 1.0 else 2
    context_GBMD = context_XD.unflatten(0, (num_branches, 1, -1))
    num_tokens, num_steps = context_GBMD.shape[2], len(noises) - 1
    step = Step(
        index=0,
        num_masked_before=num_tokens,
        num_masked_after=0,
        temperature=temperature,
        denoising=Denoising(num_steps=num_steps),
    )
    tokens = DiffusionTokens(head, context_GBMD, torch.arange(num_tokens)[None], guidance)
    return tokens.sample(RecordedNormals(iter(noises[:-1])), step)[0][0]


def whole_decode(
    network: Network,
    labels: Sequence[int],
    order_BL: Tensor,
    noises: Sequence[Tensor],
    *,
    num_denoising: int,
    sampling: SamplingOptions,
    guidance_schedule: GuidanceSchedule,
) -> Tensor:
    """Latents [B, C, H, W] of a decode with every draw recorded: for each step a start and one a denoising
    step.
    """
    per_step = num_denoising + 1
    used = [draw for index, draw in enumerate(noises) if index % per_step < num_denoising]
    noise = RecordedNormals(iter(used), order_BL)
    model = MAR(network, _unused_codec(network.config), guidance_schedule=guidance_schedule)
    schedule = model.schedule(len(noises) // per_step, num_masked=order_BL.shape[1], options=sampling)
    canvas = model.blank(len(labels))
    tokens_BLC = decode(
        model,
        prepare_condition(model, model.encode(labels), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=FullFeatures(model),
        unmask=model.unmask_rule(canvas, noise),
    ).tokens_BL
    return to_latents(tokens_BLC, network.config.patch_size)


def _chain(case: Case, head: HeadNetwork, name: str) -> Tensor:
    settings, given = case.config[name], case.group(f"in.{name}")
    return reverse_chain_of(
        head,
        [given["init"], *given["noise"]],
        given["c"],
        guidance=settings["cfg"],
        temperature=settings["temperature"],
    )


def _decode(case: Case, network: Network, name: str) -> Tensor:
    settings, given, noises = case.config[name], case.group(f"in.{name}"), case.group(f"in.{name}.noise")
    return whole_decode(
        network,
        given.get("labels", case.tensors["in.labels"]).tolist(),
        given["orders"],
        [noises[key] for key in sorted(noises)],
        num_denoising=int(case.config["num_sampling_steps"]),
        sampling=SamplingOptions(
            guidance=settings["cfg"],
            temperature=settings["temperature"],
            denoising_steps=int(case.config["num_sampling_steps"]),
        ),
        guidance_schedule=settings["cfg_schedule"],
    )


def _unused_codec(sizes: NetworkConfig) -> KLCodec:
    """A codec that fits the network and is never run."""
    z_channels = sizes.channels // sizes.patch_size**2
    with torch.device("meta"):
        return KLCodec(
            KLConfig(
                ch=32,
                ch_mult=(1,),
                num_res_blocks=1,
                attn_resolutions=(),
                resolution=sizes.grid * sizes.patch_size,
                z_channels=z_channels,
            )
        )
