"""`load` and `accelerate`: every kind of source, and a clear complaint about everything else."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import swiftmask
from swiftmask import registry, sources
from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.marval import make_student, write_student
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT
from tests.released_layouts import write_maskgit

LABELS, SEEDS = [3, 0, 6], [5, 1, 2**40]


@pytest.fixture
def pipeline(tiny_folder: Path) -> swiftmask.Pipeline:
    return swiftmask.load(tiny_folder)


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """The released layout of MaskGIT."""
    write_maskgit(tmp_path)
    return tmp_path


def test_a_folder_draws(pipeline: swiftmask.Pipeline) -> None:
    result = pipeline.generate(LABELS, seeds=SEEDS, steps=4)
    assert [image.size for image in result.images] == [(8, 8)] * 3
    assert result.cost.calls["backbone"] == 4
    assert pipeline.name == "tiny"


def test_released_file_and_upstream_layout(upstream: Path) -> None:
    path, codec = upstream / "MaskGIT" / "MaskGIT_ImageNet_256.pth", upstream / "VQGAN" / "last.ckpt"
    by_file, by_folder = swiftmask.load(path, codec=codec), swiftmask.load(upstream)
    pictures = [p.generate([1], seeds=[3], steps=2, output_type="pt").images for p in (by_file, by_folder)]
    assert torch.equal(*pictures)
    with pytest.raises(ValueError, match=r"codec='VQGAN/last\.ckpt'"):
        swiftmask.load(path)
    shutil.copy(path, path.with_name("MaskGIT_ImageNet_512.pth"))
    with pytest.raises(ValueError, match="several models"):
        swiftmask.load(upstream)


def test_a_folder_of_many_files_is_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        (tmp_path / f"{i}.txt").touch()
    monkeypatch.setattr(sources, "_MOST_FILES", 10)
    with pytest.raises(ValueError, match="holds more than 10 files: give the folder of one model"):
        swiftmask.load(tmp_path)


def test_dtype(tiny_folder: Path) -> None:
    pipeline = swiftmask.load(tiny_folder, dtype="bfloat16", device="cpu")
    assert pipeline.model.transformer.pos_emb.dtype == torch.bfloat16  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="did you mean bfloat16"):
        swiftmask.load(tiny_folder, dtype="bfloat")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("maskgit-scene", "unknown model"),
        ("scenes-judge", "holds no model"),
        ("./nowhere", "no such model file or folder"),
        ("nowhere.pth", "no such model file or folder"),
        ("nobody/nothing", "no model 'nobody/nothing'"),
    ],
)
def test_an_unknown_source(source: str, complaint: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=complaint) as caught:
        swiftmask.load(source, local_files_only=True)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_folders(tiny_folder: Path, tiny_shortcut_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected config.json"):
        swiftmask.load(tmp_path)
    with pytest.raises(ValueError, match="accelerate"):
        swiftmask.load(tiny_shortcut_folder)
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        swiftmask.load(other)
    (other / "config.json").write_text(json.dumps({"model": "maskgitt"}))
    with pytest.raises(ValueError, match="did you mean maskgit"):
        swiftmask.load(other)


def test_a_shortcut_saves_backbone_calls(pipeline: swiftmask.Pipeline, tiny_shortcut_folder: Path) -> None:
    fast = swiftmask.accelerate(pipeline, shortcut=tiny_shortcut_folder, full_steps=2)
    assert fast.generate(LABELS, steps=6).cost.calls["shortcut"] == 4
    assert pipeline.generate(LABELS, steps=6).cost.calls["backbone"] == 6
    assert fast.generate(LABELS, steps=6).cost.flops < pipeline.generate(LABELS, steps=6).cost.flops


@pytest.mark.parametrize("caching", ["reuse", "extrapolation-1", "extrapolation-2"])
def test_every_step_full_is_the_vanilla_image(caching: str, pipeline: swiftmask.Pipeline) -> None:
    fast = swiftmask.accelerate(pipeline, caching=caching, full_steps=5)
    ours, theirs = (p.generate(LABELS, seeds=SEEDS, steps=5).trajectory for p in (fast, pipeline))
    assert torch.equal(ours.tokens_BL, theirs.tokens_BL)


def test_a_shortcut_that_overflows_gives_no_images(
    pipeline: swiftmask.Pipeline, golden_shortcut: Shortcut
) -> None:
    """The features of float16 end at 65504; the error says which dtypes reach further."""
    spoilt = copy.deepcopy(golden_shortcut)
    with torch.no_grad():
        for parameter in spoilt.parameters():
            parameter.mul_(1e4)
    pipeline.to(dtype=torch.float16)
    fast = swiftmask.accelerate(pipeline, shortcut=spoilt, full_steps=1)
    with pytest.raises(FloatingPointError, match="float16 overflows .* take dtype=bfloat16 or float32"):
        fast.generate(LABELS, steps=4)
    assert pipeline.generate(LABELS, steps=4).images


def test_default_and_chosen_placement(pipeline: swiftmask.Pipeline, golden_shortcut: Shortcut) -> None:
    assert swiftmask.accelerate(pipeline, shortcut=golden_shortcut).full_steps == pipeline.steps // 2
    fast = swiftmask.accelerate(pipeline, shortcut=golden_shortcut, full_steps=[4, 0])
    assert [step.index for step in fast.schedule(6) if step.full] == [0, 4]


def test_what_accelerate_refuses(pipeline: swiftmask.Pipeline, tiny_shortcut_folder: Path) -> None:
    def refused(match: str, **settings: object) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            swiftmask.accelerate(pipeline, **settings)  # type: ignore[arg-type]

    refused("one of shortcut=..., caching=... and marval=..., got none")
    refused("got shortcut and caching", shortcut=tiny_shortcut_folder, caching="reuse")
    refused("no diffusion head", marval="./nowhere")
    refused("did you mean extrapolation-", caching="extrapolation")
    refused("full_steps must be a whole number between 1 and", caching="reuse", full_steps=0)
    refused("step 0", caching="reuse", full_steps=[1, 2])
    refused("no such shortcut", shortcut="./nowhere")
    refused("unknown shortcut", shortcut="nowhere")
    refused("width", shortcut=Shortcut(ShortcutConfig(width=32, bottleneck_width=16)))
    with pytest.raises(ValueError, match="between 1 and the number of steps"):
        swiftmask.accelerate(pipeline, caching="reuse", full_steps=9).generate(LABELS, steps=4)


def test_a_student_takes_the_models_place(golden_mar: MAR, tmp_path: Path) -> None:
    teacher = swiftmask.Pipeline(golden_mar)
    student = make_student(golden_mar, golden_mar.head_parameters())
    with torch.no_grad():  # an untrained one is refused as its teacher's own weights
        for parameter in student.parameters():
            parameter.mul_(1.01 if parameter.requires_grad else 1.0)
    write_student(tmp_path / "student", student, provenance={})
    fast = swiftmask.accelerate(teacher, marval=tmp_path / "student")
    assert fast.generate([1], steps=4).cost.calls == {"backbone": 4, "head": 4, "decoder": 1, "branches": 1}
    assert teacher.generate([1], steps=4).cost.calls == {
        "backbone": 4,
        "head": 12,
        "decoder": 1,
        "branches": 2,
    }
    both = swiftmask.accelerate(fast, caching="reuse", full_steps=2)
    assert both.generate([1], steps=4).cost.calls["reuse"] == 2
    for complaint, pipeline, settings in (
        ("no such MARVAL student", teacher, {"marval": "./nowhere"}),
        ("marval replaces the head", teacher, {"marval": student, "full_steps": 2}),
        ("marval first", both, {"marval": student}),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            swiftmask.accelerate(pipeline, **settings)


def test_operations_of_long_chains_follow_from_short_ones(golden_mar: MAR) -> None:
    pipeline = swiftmask.Pipeline(golden_mar, sampling=SamplingOptions(denoising_steps=7))
    schedule = pipeline.schedule(4)
    assert pipeline.flops(schedule) == sum(pipeline.step_flops(schedule))


def test_options_of_another_kind_of_head_are_refused(pipeline: swiftmask.Pipeline) -> None:
    options = SamplingOptions(denoising_steps=10, sampler="ddim")
    with pytest.raises(ValueError, match="maskgit generates codes.*leave out denoising_steps and sampler"):
        replace(pipeline, sampling=options).schedule(4)


def test_registry_finds_folders() -> None:
    assert "maskgit" in registry.model_names()
    assert {"shortcut", "caching"} <= set(registry.method_names())
    assert {"maskgit-scenes", "lumina-dimoo", "tokenizer"} <= set(registry.recipe_names())
    assert not {"provenance", "scenes", "base-model"} & set(registry.recipe_names())
    assert {"scenes-judge", "scenes-reward"} <= set(registry.bundled_names("reader"))


def test_description_of_a_folder(tiny_folder: Path, golden_maskgit: MaskGIT) -> None:
    weights = registry.describe(tiny_folder)
    assert (weights.kind, weights.family) == ("model", "maskgit")
    assert weights.num_parameters == sum(p.numel() for p in golden_maskgit.parameters())
    assert weights.measured == {"judge_score": 0.5}


def test_public_names() -> None:
    for name in swiftmask.__all__:
        assert getattr(swiftmask, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = swiftmask.nothing  # type: ignore[attr-defined]
