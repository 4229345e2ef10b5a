"""`load` and `accelerate`: from a name, a path or a repository to a pipeline, and to a faster one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch

from swiftmask.core.arguments import require_type
from swiftmask.core.compiled import compile_blocks, mode_of
from swiftmask.core.families import Reading
from swiftmask.core.protocol import DenoisingModel, FeatureFn, MaskedGenerator, SamplingOptions
from swiftmask.core.ranges import RANGES, check
from swiftmask.evaluate.fingerprints import weights_fingerprint
from swiftmask.methods.caching import (
    ExtrapolatedFeatures,
    MLCacheFeatures,
    ReuseFeatures,
    refreshed_first,
)
from swiftmask.methods.marval import Student, read_student
from swiftmask.methods.shortcut import AnyShortcut, ShortcutFeatures, read_shortcut
from swiftmask.methods.speed_rl.weights import merged, read_policy
from swiftmask.pipeline import Pipeline
from swiftmask.registry import (
    bundled_folder,
    bundled_names,
    method_names,
    read_config,
    suggestion,
    weights_name,
)
from swiftmask.sources import RELEASED_SUFFIXES, identify, read_model

CACHINGS: dict[str, Callable[[Any], FeatureFn]] = {
    "reuse": ReuseFeatures,
    "extrapolation-1": partial(ExtrapolatedFeatures, order=1),
    "extrapolation-2": partial(ExtrapolatedFeatures, order=2),
    "ml-cache": MLCacheFeatures,
    "ml-cache-refreshed": partial(MLCacheFeatures, rule=refreshed_first),
}
"""Training-free feature functions by name; the last two need a model that can recompute single columns."""

_SOURCES = str | PathLike
"""What a model, an accelerator or a codec may be named by."""

_LONGEST_NAME = 255
"""Bytes."""

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TEXT_ENCODER_FILES = (("config.json", "model.safetensors"), ("config.json", "pytorch_model.bin"))
"""What is downloaded of a CLIP model, the better first; repositories hold the same weights many times."""


def load(  # noqa: PLR0913 - one call for everything that can be said of a source
    source: str | Path,
    *,
    codec: str | Path | None = None,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "auto",
    blocks_on_device: int | None = None,
    compile: bool | str = False,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Pipeline:
    """A base model, ready to generate. Its weights are frozen.

    Args:
        source: a bundled name ("maskgit-scenes"), a model folder, a released weights file, a folder in a
            released layout, or a Hugging Face repo id. Keys and shapes tell what it is.
        codec: the tokenizer's weights, for a released file of MaskGIT or MAR.
        text_encoder: folder or repo id of another CLIP text encoder for a released Meissonic: the published
            images of its 1024-pixel model need "laion/CLIP-ViT-H-14-laion2B-s32B-b79K".
        dtype: of the weights, "bfloat16" or `torch.bfloat16`. Default ("auto"): the family's own, which is
            bfloat16 for Lumina-DiMOO as released and float32 for the others.
        device: "auto" is the first GPU of CUDA, else the CPU. MPS only if asked for: it lacks float64, which
            schedules and noise need.
        blocks_on_device: of Lumina-DiMOO on a card it does not fit (the error says how many do): how many
            blocks stay there, while the others wait in host memory.
        compile: compile the blocks that repeat, of the model and of what accelerates it: True, or a mode of
            `torch.compile` such as "max-autotune" (docs/compile.md). The first decode compiles.
        revision, local_files_only: for a repo id, as in huggingface_hub.

    Errors: FileNotFoundError or ValueError saying what was found and what would work.
    """
    for name, value in (("codec", codec), ("text_encoder", text_encoder)):
        require_type(name, value, _SOURCES | None, "a name or a path")
    if mode_of(compile) is not None and blocks_on_device is not None:
        raise ValueError("compile needs all blocks on the device: leave out compile, or blocks_on_device")
    reading = Reading(
        codec=None if codec is None else Path(codec).expanduser(),
        dtype=_chosen_dtype(dtype),
        device=device_named(device),
        blocks_on_device=blocks_on_device,
    )
    pipeline = load_with(
        source, reading, text_encoder=text_encoder, revision=revision, local_files_only=local_files_only
    )
    return pipeline.compiled(compile)


def load_with(
    source: str | Path,
    reading: Reading,
    *,
    text_encoder: str | Path | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Pipeline:
    """`load` with all that can be told of a reading."""
    if text_encoder is not None:
        folder = _find_text_encoder(text_encoder, local_files_only=local_files_only)
        reading = replace(reading, text_encoder=folder)
    path, name = find_model(source, revision, local_files_only=local_files_only)
    return Pipeline(read_model(path, reading), name=name, folder=path if path.is_dir() else None)


def find_model(source: str | Path, revision: str | None, *, local_files_only: bool) -> tuple[Path, str]:
    """Where a model is on this machine (after downloading it, if need be), and what to call it."""
    require_type("source", source, _SOURCES, "a name or a path")
    text, path = str(source), Path(source).expanduser()
    if len(path.name.encode(errors="replace")) > _LONGEST_NAME:
        raise ValueError(f"unknown model {text[:40]!r}...: no file has a name of {len(path.name)} letters")
    if text in bundled_names():
        return bundled_folder(text), text
    if path.is_file():
        return path, path.stem
    if text and path.is_dir():
        return path, weights_name(path)
    if _looks_like_path(text):
        raise FileNotFoundError(f"no such model file or folder: {text}")
    if _REPO_ID.fullmatch(text):
        return _download(text, revision, local_files_only=local_files_only), text
    raise ValueError(
        f"unknown model {text!r}{suggestion(text, bundled_names('model'))} "
        "(or give a folder, a file or a Hugging Face repo id)"
    )


def accelerate(
    pipeline: Pipeline,
    *,
    shortcut: AnyShortcut | str | Path | None = None,
    caching: str | None = None,
    marval: Student | str | Path | None = None,
    speed_rl: str | Path | None = None,
    full_steps: int | Sequence[int] | None = None,
) -> Pipeline:
    """The same model, cheaper; `pipeline` itself is left as it is. Accelerate twice to combine a cheaper head
    or fewer steps with a cheaper backbone.

    Args:
        shortcut: replaces most backbone calls: a network, a bundled name, a folder or a released file.
        caching: instead of a shortcut, a training-free baseline: "reuse", "extrapolation-1",
            "extrapolation-2", and for Lumina-DiMOO "ml-cache" or "ml-cache-refreshed".
        marval: replaces MAR's diffusion head by one call: a student, a bundled name or a folder.
        speed_rl: weights that Speed-RL tuned for few steps: a bundled name, or the folder of a run, of its
            adapters (LoRA) or of the whole model. The pipeline's steps become those it was tuned for, and so
            does what its sampling leaves open.
        full_steps: how many steps still run the backbone, or which (step 0 among them). Default: what the
            shortcut's config says, else half of the pipeline's steps; at most half of a decode's.

    Errors: ValueError unless exactly one of the four is given and fits the model; FileNotFoundError.
    """
    require_type("pipeline", pipeline, Pipeline, "what load(...) gives")
    require_type("shortcut", shortcut, AnyShortcut | _SOURCES | None, "a name, a path or a network")
    require_type("marval", marval, Student | _SOURCES | None, "a name, a path or a student")
    require_type("speed_rl", speed_rl, _SOURCES | None, "a name or a path")
    require_type("caching", caching, str | None, "a name")
    ways = {"speed_rl": speed_rl, "shortcut": shortcut, "caching": caching, "marval": marval}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(
            "accelerate with speed_rl=..., or with one of shortcut=..., caching=... and marval=..., got "
            f"{got}"
        )
    if marval is not None:
        return _with_student(pipeline, marval, full_steps)
    if speed_rl is not None:
        return _tuned(pipeline, speed_rl, full_steps)
    default_full = max(1, pipeline.steps // 2)
    if caching is not None:
        features_fn = _caching(pipeline, caching)
    elif isinstance(shortcut, AnyShortcut):
        features_fn = _shortcut(pipeline, shortcut)
    else:
        assert shortcut is not None
        found = find_method(shortcut, "shortcut")
        features_fn = _shortcut(pipeline, read_shortcut(found, base=pipeline.model.spec))
        default_full = _recommended_full_steps(found) or default_full
    placed = default_full if full_steps is None else full_steps
    _compile_like(pipeline, features_fn)
    return replace(
        pipeline,
        features_fn=features_fn,
        full_steps=_placement(placed),
        full_steps_by_default=full_steps is None,
        _flops={},
    )


def _compile_like(pipeline: Pipeline, part: object) -> None:
    """Compile a new part of a pipeline whose other parts are compiled."""
    if pipeline.compile_mode is not None:
        compile_blocks(part, pipeline.compile_mode)


def dtype_named(name: str) -> torch.dtype:
    """Errors: ValueError naming the ones there are."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in names:
        raise ValueError(f"unknown dtype {name!r}{suggestion(name, names)}")
    return names[name]


def _chosen_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """None, or "auto", leaves it to the family."""
    if dtype == "auto":
        return None
    if isinstance(dtype, str):
        return dtype_named(dtype)
    if dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    return dtype


def device_named(device: torch.device | str) -> torch.device:
    """A device by its name; "auto" is the first GPU of CUDA, else the CPU.

    Errors: ValueError for a device that does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {str(device)!r}: use auto, cpu, cuda or mps") from error
    counts = {
        "cpu": 1,
        "cuda": max(1, torch.cuda.device_count()) if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if wanted.type not in counts:
        raise ValueError(f"device {str(device)!r} is not supported: use auto, cpu, cuda or mps")
    if (wanted.index or 0) >= counts[wanted.type]:
        raise ValueError(
            f"device {str(device)!r} was asked for, but this PyTorch sees {counts[wanted.type]} of "
            f"{wanted.type}: use device='auto'"
        )
    return wanted


def _find_text_encoder(source: str | Path, *, local_files_only: bool) -> Path:
    text, path = str(source), Path(source).expanduser()
    if text and path.is_dir():
        return path
    if path.is_file() or _looks_like_path(text) or not _REPO_ID.fullmatch(text):
        raise FileNotFoundError(
            f"no such text encoder: {text} (expected the folder of a CLIP model, or a Hugging Face repo id)"
        )
    for files in _TEXT_ENCODER_FILES:
        folder = _download(text, None, local_files_only=local_files_only, files=files)
        if all((folder / name).is_file() for name in files):
            break
    return folder


def _download(
    repo_id: str, revision: str | None, *, local_files_only: bool, files: Sequence[str] | None = None
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=None if files is None else list(files),
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        known = bundled_names("model")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"no model {repo_id!r}{suggestion(repo_id.split('/')[-1], known)} "
            f"(no such local folder, and Hugging Face gave nothing: {reason})"
        ) from error


def _with_student(
    pipeline: Pipeline, marval: Student | str | Path, full_steps: int | Sequence[int] | None
) -> Pipeline:
    """The pipeline with the student in the model's place."""
    if full_steps is not None:
        raise ValueError("full_steps goes with a shortcut or caching: marval replaces the head, not steps")
    if pipeline.features_fn is not None:
        raise ValueError("give marval first, then the shortcut or caching that runs on its model")
    student = marval if isinstance(marval, Student) else _read_student(pipeline, marval)
    _compile_like(pipeline, student)
    return replace(pipeline, model=student, _flops={})


def _read_student(pipeline: Pipeline, source: str | Path) -> Student:
    model = pipeline.model
    if not hasattr(model, "denoise"):
        raise ValueError(f"{pipeline.name} has no diffusion head for marval to replace: use a mar model")
    return read_student(find_method(source, "MARVAL student"), cast(DenoisingModel, model))


def _tuned(pipeline: Pipeline, source: str | Path, full_steps: int | Sequence[int] | None) -> Pipeline:
    """The pipeline with the tuned weights in the model's place."""
    if full_steps is not None:
        raise ValueError("full_steps goes with a shortcut or caching: speed_rl has weights for fewer steps")
    if pipeline.features_fn is not None:
        raise ValueError("give speed_rl first, then the shortcut or caching that runs on its model")
    bundled = str(source) in bundled_names()
    folder = bundled_folder(str(source)) if bundled else find_method(source, "Speed-RL result")
    if (folder / "policy").is_dir():  # what a run left: see recipes/speed_rl.py
        folder = folder / "policy"
    model, config = _read_tuned(pipeline, folder), read_config(folder)  # checked with it
    _compile_like(pipeline, model)
    sampling = SamplingOptions(**config.get("sampling") or {})
    steps = min(config.get("steps") or pipeline.steps, model.spec.num_tokens)  # as a pipeline's own default
    return replace(pipeline, model=model, steps=steps, sampling=pipeline.sampling.over(sampling), _flops={})


def _read_tuned(pipeline: Pipeline, folder: Path) -> MaskedGenerator:
    """A plain model of the base's kind: adapters are folded into the weights, so that a step costs what it
    costs the base.
    """
    config = read_config(folder)
    if "model" not in config:
        return merged(read_policy(folder, pipeline.model))
    reading = Reading(device=pipeline.model.device, dtype=pipeline.dtype)
    model = read_model(folder, reading)
    if weights_fingerprint(model) == weights_fingerprint(pipeline.model):
        raise ValueError(
            f"{folder} holds the weights of {pipeline.name} itself: expected what Speed-RL tuned"
        )
    if model.spec != pipeline.model.spec:
        raise ValueError(
            f"{folder} was tuned from another model than {pipeline.name}: expected {pipeline.model.spec}, "
            f"got {model.spec}"
        )
    return model


def find_method(source: str | Path, what: str) -> Path:
    """Where an accelerator's weights are.

    Args:
        what: it is, for complaints.

    Errors: FileNotFoundError; ValueError for an unknown name, or a file of something else.
    """
    path = Path(source).expanduser()
    if str(source) in bundled_names("method"):
        return bundled_folder(str(source))
    if path.is_file():
        _refuse_model_file(path, what)
    if str(source) and path.exists():
        return path
    if _looks_like_path(str(source)) or "/" in str(source):
        raise FileNotFoundError(f"no such {what} file or folder: {source}")
    known = bundled_names("method")
    raise ValueError(f"unknown {what} {str(source)!r}{suggestion(str(source), known)}")


def _refuse_model_file(path: Path, what: str) -> None:
    """Errors: ValueError for a file that a model is published as."""
    found = identify(path)
    if found.owner not in method_names():
        raise ValueError(f"{path} is {found.kind.what}, no {what}: {found.kind.use}")


def _shortcut(pipeline: Pipeline, shortcut: AnyShortcut) -> FeatureFn:
    features_fn = ShortcutFeatures(pipeline.model, shortcut)
    shortcut.to(device=pipeline.model.device, dtype=pipeline.dtype).eval()
    return features_fn


def _caching(pipeline: Pipeline, caching: str) -> FeatureFn:
    if caching not in CACHINGS:
        raise ValueError(f"unknown caching {caching!r}{suggestion(caching, CACHINGS)}")
    return CACHINGS[caching](pipeline.model)


def _recommended_full_steps(path: Path) -> int | None:
    recommended = read_config(path).get("full_steps") if path.is_dir() else None
    return int(recommended) if isinstance(recommended, int) else None


def _placement(full_steps: int | Sequence[int]) -> int | tuple[int, ...]:
    if not isinstance(full_steps, Sequence):
        check("full_steps", full_steps, RANGES["full_steps"], int)
        return int(full_steps)
    for place, index in enumerate(full_steps):
        check(f"full_steps[{place}]", index, RANGES["Settings.full_steps"], int)
    placed = tuple(sorted(set(full_steps)))
    if not placed or placed[0] != 0:
        raise ValueError(f"full_steps must contain step 0 (nothing precedes it), got {list(placed)}")
    return placed


def _looks_like_path(text: str) -> bool:
    marked = text.startswith((".", "/", "~")) or text.count("/") > 1
    return marked or text.endswith(RELEASED_SUFFIXES)
