"""A pipeline of ours behind diffusers' call, callbacks and files."""

import copy
import fnmatch
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from swiftmask.api import accelerate
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.steering import Steer
from swiftmask.integrations.diffusers import MaskedImagePipeline
from swiftmask.integrations.folder import write_pipeline
from swiftmask.methods.caching import MLCacheFeatures
from swiftmask.methods.marval import make_student
from swiftmask.pipeline import Pipeline

GUIDED = SamplingOptions(guidance=3.0)
Pipelines = Callable[[str], Pipeline]


@pytest.fixture
def made(request: pytest.FixtureRequest, tiny_shortcut_folder: Path) -> Pipelines:
    """Tiny pipelines by name: families, and what accelerates them."""

    def make(name: str) -> Pipeline:
        family, _, method = name.partition("+")
        plain = Pipeline(request.getfixturevalue(f"golden_{family}"), name=family, steps=4)
        if method == "shortcut":
            return accelerate(plain, shortcut=tiny_shortcut_folder, full_steps=(0, 2))
        if method == "marval":
            teacher: Any = copy.deepcopy(plain.model)
            student = make_student(teacher, teacher.head_parameters())
            with torch.no_grad():
                whole: Any = student.model
            dict(whole.named_parameters())[teacher.head_parameters()[0]].data.add_(0.1)
            return accelerate(replace(plain, model=teacher), marval=student)
        accelerated = accelerate(plain, caching=method) if method else plain
        return replace(accelerated, sampling=GUIDED)

    return make


@pytest.fixture
def pipe(made: Pipelines) -> Any:
    quiet: Any = MaskedImagePipeline(made("maskgit"))
    quiet.set_progress_bar_config(disable=True)
    return quiet


def asked(pipe: Any) -> list[Any]:
    return [3, 1] if pipe.pipeline.model.spec.draws == "class" else ["red circle", "a"]


def tokens(pipe: Any) -> torch.Tensor:
    return pipe(asked(pipe), seeds=[2**64 - 1, 7], output_type="latent").images


@pytest.mark.parametrize("family", ["maskgit", "meissonic"])
def test_images_are_those_of_generate(family: str, made: Pipelines) -> None:
    pipeline = made(family)
    pipe: Any = MaskedImagePipeline(pipeline)
    own: dict[str, Any] = {"labels": asked(pipe)} if family == "maskgit" else {"prompts": asked(pipe)}
    plain = pipeline.generate(**own, seeds=[2**64 - 1, 0], steps=3, guidance=5.0, output_type="pt").images
    assert isinstance(plain, torch.Tensor)
    call: dict[str, Any] = {"seeds": [2**64 - 1, 0], "num_inference_steps": 3, "guidance_scale": 5.0}
    assert torch.equal(pipe(asked(pipe), output_type="pt", **call).images, plain)
    arrays = pipe(asked(pipe), output_type="np", return_dict=False, **call)[0]
    assert np.array_equal(arrays, plain.permute(0, 2, 3, 1).numpy())
    (picture, _) = pipe(asked(pipe), **call).images
    assert np.array_equal(np.array(picture), (arrays[0] * 255).round().astype(np.uint8))


def test_a_generator_gives_each_image_a_seed_of_its_own(pipe: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (pipe(3, num_images_per_prompt=3, generator=generator).result for _ in range(2))
    fewer = pipe([3, 3], generator=torch.Generator().manual_seed(5)).result
    assert len({*first.seeds, *second.seeds}) == 6
    assert fewer.seeds == first.seeds[:2]
    assert max(first.seeds) > 2**62
    listed = pipe([3, 1], generator=[torch.Generator().manual_seed(seed) for seed in (9, 5)]).result
    assert listed.seeds[1] == first.seeds[0]
    assert pipe(3).result.seeds != pipe(3).result.seeds


def test_guidance_below_one_is_off_as_in_diffusers(pipe: Any) -> None:
    off = pipe(3, seeds=[1], guidance_scale=0.0).result
    assert off.cost.calls["branches"] == 1
    with pytest.raises(ValueError, match="guidance must be"):
        pipe(3, guidance_scale=-1.0)


def test_a_callback_sees_every_step_and_changes_guidance(pipe: Any) -> None:
    seen = []

    def widen(of: MaskedImagePipeline, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, timestep, int(tensors["masked"].sum()), tensors["latents"].shape[1]))
        if step == 1:
            of._guidance_scale = 9.0
        return tensors

    result = pipe(
        3,
        seeds=[4],
        guidance_scale=3.0,
        callback_on_step_end=widen,
        callback_on_step_end_tensor_inputs=["latents", "masked"],
    ).result
    schedule = pipe.pipeline.schedule()
    assert seen == [(step.index, step.num_masked_after, step.num_masked_after, 16) for step in schedule]
    assert (pipe.guidance_scale, pipe.num_timesteps) == (9.0, 4)
    own = pipe.pipeline.generate(
        [3], seeds=[4], on_step=lambda record: Steer(guidance=9.0) if record.step.index == 1 else None
    )
    assert torch.equal(result.trajectory.tokens_BL, own.trajectory.tokens_BL)


def test_interrupt_stops_after_the_step_and_the_next_call_begins_anew(pipe: Any) -> None:
    def stop(of: MaskedImagePipeline, step: int, timestep: int, tensors: dict[str, Any]) -> None:
        of._interrupt = step == 1

    output = pipe(3, seeds=[4], callback_on_step_end=stop)
    assert output.result.stopped
    assert pipe.interrupt
    assert isinstance(output.images[0], Image.Image)
    assert not pipe(3, seeds=[4]).result.stopped
    assert not pipe.interrupt


class Cutoff(PipelineCallback):
    """Turns guidance off, in the way that diffusers' own cutoff does."""

    tensor_inputs = ["latents"]  # type: ignore[assignment]

    def callback_fn(self, pipeline: Any, step_index: Any, timesteps: Any, callback_kwargs: Any) -> Any:
        config: Any = self.config
        if step_index == config.cutoff_step_index:
            pipeline._guidance_scale = 0.0
        return callback_kwargs


def test_diffusers_own_callbacks_work(pipe: Any) -> None:
    cut = Cutoff(cutoff_step_ratio=None, cutoff_step_index=1)  # type: ignore[arg-type]
    result = pipe(3, seeds=[4], guidance_scale=3.0, callback_on_step_end=cut).result
    own = pipe.pipeline.generate(
        [3], seeds=[4], on_step=lambda record: Steer(guidance=1.0) if record.step.index == 1 else None
    )
    assert torch.equal(result.trajectory.tokens_BL, own.trajectory.tokens_BL)


def test_kept_pixels_are_pasted_back(pipe: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 8))
    drawn = np.array(pipe(3, seeds=[4], image=image, mask_image=mask).images[0])
    assert np.array_equal(drawn[:, 4:], np.array(image)[:, 4:])
    assert not np.array_equal(drawn[:, :4], np.array(image)[:, :4])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"output_type": "jpeg"}, "output_type must be one of pil, pt, np, latent"),
        ({"height": 16}, "generates images of 8x8 only"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be"),
        ({"generator": [torch.Generator()] * 2}, "got 2 for 1 images"),
        ({"mask_image": Image.new("L", (8, 8))}, "mask_image needs an image"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "must be of"),
        (
            {"callback_on_step_end": lambda pipe, step, left, tensors: {"latents": tensors["latents"] + 1}},
            "a callback cannot exchange tokens",
        ),
        (
            {"guidance_scale": 1.0, "callback_on_step_end": lambda pipe, *_: widened(pipe)},
            "cannot start within",
        ),
    ],
)
def test_what_cannot_work_is_refused(call: dict[str, Any], message: str, pipe: Any) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(3, **call)


def widened(pipe: Any) -> None:
    pipe._guidance_scale = 4.0


def test_the_models_own_size_may_be_named(pipe: Any) -> None:
    assert pipe(3, height=8, width=8).images[0].size == (8, 8)


def test_offloading_by_diffusers_is_refused(pipe: Any) -> None:
    for offload in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        with pytest.raises(ValueError, match="blocks_on_device"):
            offload()


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where diffusers copies the code of a folder before it runs."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "modules"


KINDS = ("maskgit", "mar", "meissonic", "dimoo", "maskgit+shortcut", "maskgit+extrapolation-2", "mar+marval")


@pytest.mark.parametrize("kind", [*KINDS, "dimoo+ml-cache-refreshed"])
def test_both_from_pretrained_read_what_save_pretrained_writes(
    kind: str, made: Pipelines, tmp_path: Path, modules_cache: Path
) -> None:
    pipeline = made(kind)
    saved = MaskedImagePipeline(pipeline)
    saved.save_pretrained(tmp_path / "saved")
    expected = tokens(saved)
    for read in (
        MaskedImagePipeline.from_pretrained(tmp_path / "saved"),
        DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True),
    ):
        assert isinstance(read, MaskedImagePipeline)
        assert torch.equal(tokens(read), expected)
        again = read.pipeline
        assert (again.name, again.steps, again.sampling) == (kind.split("+")[0], 4, pipeline.sampling)
        assert again.schedule() == pipeline.schedule()
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "MaskedImagePipeline"]


def test_a_pipeline_may_be_saved_over_another(made: Pipelines, tmp_path: Path) -> None:
    for kind in ("maskgit+shortcut", "maskgit"):
        saved = MaskedImagePipeline(made(kind))
        saved.save_pretrained(tmp_path)
        assert torch.equal(tokens(MaskedImagePipeline.from_pretrained(tmp_path)), tokens(saved))
    assert MaskedImagePipeline.from_pretrained(tmp_path).pipeline.features_fn is None


def test_precision_is_kept_and_may_be_chosen(made: Pipelines, tmp_path: Path, modules_cache: Path) -> None:
    low = replace(made("maskgit"), model=copy.deepcopy(made("maskgit").model)).to(dtype=torch.bfloat16)
    MaskedImagePipeline(low).save_pretrained(tmp_path)
    assert MaskedImagePipeline.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert MaskedImagePipeline.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    generic = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32, trust_remote_code=True)
    assert generic.dtype == torch.float32


def test_any_source_of_load_is_a_source(tiny_folder: Path, pipe: Any) -> None:
    read: Any = MaskedImagePipeline.from_pretrained(tiny_folder)
    assert torch.equal(
        read(3, seeds=[1], output_type="latent").images,
        read.pipeline.generate([3], seeds=[1]).trajectory.tokens_BL,
    )
    with pytest.raises(ValueError, match="unknown model 'maskgit-scene'"):
        MaskedImagePipeline.from_pretrained("maskgit-scene")


def test_saving_refuses_what_it_would_lose(pipe: Any, made: Pipelines, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{"variant": "fp16"}, {"safe_serialization": False}]
    for option in options:
        with pytest.raises(ValueError, match="written as safetensors, of one variant"):
            pipe.save_pretrained(tmp_path, **option)
    odd = made("dimoo")
    model: Any = odd.model
    odd = replace(odd, features_fn=MLCacheFeatures(model, cache_ratio=0.5), full_steps=2)
    with pytest.raises(ValueError, match="cannot be saved"):
        write_pipeline(tmp_path / "odd", odd)
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="has no variant"):
        type(pipe.model).from_pretrained(tmp_path / "whole" / "model", variant="fp16")


class FakeHub:
    """What `push_to_hub` calls of `huggingface_hub.HfApi`, with a folder for the hub."""

    def __init__(self, folder: Path, has_card: bool) -> None:
        self.folder, self.has_card, self.calls = folder, has_card, []

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", repo_id, options))
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return self.has_card

    def upload_folder(self, *, repo_id: str, folder_path: str, ignore_patterns: Any, **options: Any) -> str:
        self.calls.append(("upload_folder", repo_id, options))
        ignored = shutil.ignore_patterns(*(ignore_patterns or ()))
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True, ignore=ignored)
        return "https://hub/commit"


@pytest.mark.parametrize("has_card", [False, True])
def test_push_to_hub_uploads_a_folder_that_loads(
    has_card: bool, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "hub", has_card)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: hub)
    assert pipe.push_to_hub("tiny", private=True, create_pr=True) == "https://hub/commit"
    assert hub.calls == [
        ("create_repo", "tiny", {"private": True, "exist_ok": True}),
        (
            "upload_folder",
            "someone/tiny",
            {"commit_message": "Upload MaskedImagePipeline", "create_pr": True},
        ),
    ]
    assert (hub.folder / "README.md").exists() is not has_card
    assert torch.equal(tokens(MaskedImagePipeline.from_pretrained(hub.folder)), tokens(pipe))


def test_diffusers_downloads_every_file_of_a_repository(
    made: Pipelines, tmp_path: Path, modules_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fetches only what its patterns allow, so the folder's names matter."""
    remote, local = tmp_path / "remote", tmp_path / "local"
    pipe = MaskedImagePipeline(made("maskgit+shortcut"))
    pipe.save_pretrained(remote, repo_id="someone/tiny")
    names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]

    def fetch(repo_id: str, filename: str, **options: Any) -> str:
        (local / filename).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(remote / filename, local / filename))

    def fetch_all(repo_id: str, *, allow_patterns: Any, ignore_patterns: Any, **options: Any) -> str:
        for name in names:
            allowed = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            if allowed and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns):
                fetch(repo_id, name)
        return str(local)

    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names], sha="0" * 40)
    for module in ("pipelines.pipeline_utils", "utils.dynamic_modules_utils"):
        monkeypatch.setattr(f"diffusers.{module}.model_info", lambda *args, **options: info)
        monkeypatch.setattr(f"diffusers.{module}.hf_hub_download", fetch)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.snapshot_download", fetch_all)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils._resolve_revision", lambda *args, **options: None)
    read = DiffusionPipeline.from_pretrained("someone/tiny", trust_remote_code=True)
    assert isinstance(read, MaskedImagePipeline)
    assert torch.equal(tokens(read), tokens(pipe))
