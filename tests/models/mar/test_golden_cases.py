"""`verify` on MAR's cases: it notices a wrong number in every group, and takes sizes from the file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from verify.cases import Report, verify_folder
from verify.kinds import mar

from swiftmask.core.protocol import SamplingOptions
from swiftmask.models.mar.diffusion import respaced, respaced_timesteps, training_process
from swiftmask.models.mar.network import Network, NetworkConfig

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("mar.json", "mar.safetensors", "mar_recipe_weights.npz"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    return tmp_path


def one(folder: Path, name: str) -> Report:
    return next(report for report in verify_folder(folder, only=name) if report.name == name)


def wrong(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.ok}


def test_a_wrong_number_is_noticed_wherever_it_is(folder: Path) -> None:
    tensors = load_file(folder / "mar.safetensors")
    outputs = [key for key in tensors if key.startswith("out.")]
    for key in outputs:
        tensors[key] = tensors[key].clone()
        tensors[key].view(-1)[0] += 1e-3 * tensors[key].abs().max()
    save_file(tensors, folder / "mar.safetensors")
    assert wrong(one(folder, "mar")) == {key.removeprefix("out.") for key in outputs}


def test_a_wrong_number_in_an_npz_is_noticed(folder: Path) -> None:
    path = folder / "mar_recipe_weights.npz"
    with np.load(path) as loaded:
        arrays = dict(loaded)
    changed = {"A_z", "C_cfg_out_2p5", "D_vb", "E_out", "F2_latents", "H100_map", "V_dec_out"}
    for key in changed:
        arrays[key].flat[0] += max(1, 1e-3 * abs(arrays[key]).max())
    np.savez(path, **arrays)
    assert wrong(one(folder, "mar_recipe_weights")) == changed


def test_damaged_arrays_fail_alone(folder: Path) -> None:
    path = folder / "mar_recipe_weights.npz"
    path.write_bytes(path.read_bytes()[:5000])
    assert "mar_recipe_weights.npz is damaged or truncated" in one(folder, "mar_recipe_weights").message


@torch.no_grad()
def test_other_sizes(tmp_path: Path, sizes: NetworkConfig) -> None:
    """Unequal widths, 2x2 patches, another number of steps: a case made with our own network."""
    network = Network(replace(sizes, patch_size=2, channels=8, buffer_size=2)).eval()
    config = {
        "img_size": 32, "vae_stride": 4, "patch_size": 2, "vae_embed_dim": 2, "class_num": 5,
        "encoder_embed_dim": 32, "encoder_depth": 2, "encoder_num_heads": 4, "buffer_size": 2,
        "decoder_embed_dim": 48, "decoder_depth": 2, "decoder_num_heads": 4, "mlp_ratio": 4.0,
        "diffloss_d": 2, "diffloss_w": 24, "num_sampling_steps": "3", "respaced_timesteps": [0, 500, 999],
        "sample_b": {"cfg": 2.0, "temperature": 0.9},
        "ar_b": {"num_iter": 3, "cfg": 2.0, "cfg_schedule": "constant", "temperature": 0.9},
    }  # fmt: skip
    given = {
        "tokens": torch.randn(2, 16, 8),
        "mask": (torch.rand(2, 16).argsort(dim=1) < 9).float(),
        "labels": torch.tensor([1, 4]),
        "head.x_t": torch.randn(3, 8),
        "head.t": torch.tensor([0, 40, 999]),
        "head.c": torch.randn(3, 48),
        "loss.target": torch.randn(3, 8),
        "loss.noise": torch.randn(3, 8),
        "sample_b.init": torch.randn(3, 8),
        "sample_b.noise": torch.randn(3, 6, 8),
        "sample_b.c": torch.randn(6, 48),
        "ar_b.orders": torch.stack([torch.randperm(16) for _ in range(2)]),
    }
    draws = [torch.randn(2 * 2 * count, 8) for count in (3, 5, 8) for _ in range(4)]
    given |= {f"ar_b.noise.{index:03d}": draw for index, draw in enumerate(draws)}
    sampling = SamplingOptions(guidance=2.0, temperature=0.9, denoising_steps=3)
    latents_BCHW = mar.whole_decode(
        network,
        [1, 4],
        given["ar_b.orders"],
        draws,
        num_denoising=3,
        sampling=sampling,
        guidance_schedule="constant",
    )
    loss = mar.training_loss(
        network.head, given["loss.target"], given["loss.noise"], given["head.t"], given["head.c"]
    )
    outputs = {
        **mar.backbone(network, given["tokens"], given["mask"], given["labels"]),
        "head": network.head(given["head.x_t"], given["head.t"], given["head.c"]),
        **{f"loss.{name}": value for name, value in loss.items()},
        "diffusion.gen_betas": respaced(respaced_timesteps(3)).betas_S,
        "diffusion.train_alphas_cumprod": training_process().signal_S,
        "sample_b": mar.reverse_chain_of(
            network.head,
            [given["sample_b.init"], *given["sample_b.noise"]],
            given["sample_b.c"],
            guidance=2.0,
            temperature=0.9,
        ),
        "ar_b.latents": latents_BCHW,
    }
    tensors = {f"in.{key}": value for key, value in given.items()}
    tensors |= {f"out.{key}": value.contiguous() for key, value in outputs.items()}
    tensors |= {f"state.{key}": value for key, value in network.state_dict().items()}
    (tmp_path / "mar_b.json").write_text(json.dumps({"name": "mar", "config": config}))
    save_file(tensors, tmp_path / "mar_b.safetensors")
    assert latents_BCHW.shape == (2, 2, 8, 8)
    report = one(tmp_path, "mar_b")
    assert report.message == ""
    assert wrong(report) == set()
