"""`load` and `accelerate`: from a name, a path or a repository to a pipeline, and to a faster one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from swiftmask.core.files import first_line
from swiftmask.core.protocol import DenoisingModel, FeatureFn, MaskedGenerator, SamplingOptions
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
    generator_class,
    read_config,
    suggestion,
)

CACHINGS: dict[str, Callable[[Any], FeatureFn]] = {
    "reuse": ReuseFeatures,
    "extrapolation-1": partial(ExtrapolatedFeatures, order=1),
    "extrapolation-2": partial(ExtrapolatedFeatures, order=2),
    "ml-cache": MLCacheFeatures,
    "ml-cache-refreshed": partial(MLCacheFeatures, rule=refreshed_first),
}
"""Training-free feature functions by name; the last two need a model that can recompute single columns."""

_RELEASED_SUFFIXES = (".pth", ".pt", ".ckpt")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load(
    source: str | Path,
    *,
    codec: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    blocks_on_device: int | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Pipeline:
    """A base model, ready to generate.

    Args:
        source: a bundled name ("maskgit-scenes"), a model folder, a released weights file, a folder in the
            upstream layout (`MaskGIT_ImageNet_*.pth` and `VQGAN/last.ckpt` somewhere below), or a Hugging
            Face repo id.
        codec: the tokenizer's weights, for a released file.
        dtype: of the weights, "bfloat16" or `torch.bfloat16`; default float32.
        blocks_on_device: of Lumina-DiMOO on a card it does not fit (the error says how many do): how many
            blocks stay there, while the others wait in host memory.
        revision, local_files_only: for a repo id, as in huggingface_hub.

    Errors: FileNotFoundError or ValueError saying what was found and what would work.
    """
    wanted_dtype = dtype_named(dtype) if isinstance(dtype, str) else dtype
    wanted_device = device_named(device)
    text, path = str(source), Path(source).expanduser()
    if text in bundled_names():
        folder, name = bundled_folder(text), text
    elif path.is_file():
        return _moved(_released(path, codec), wanted_device, wanted_dtype)
    elif path.is_dir():
        folder, name = path, path.resolve().name
    elif _looks_like_path(text):
        raise FileNotFoundError(f"no such model file or folder: {text}")
    elif _REPO_ID.fullmatch(text):
        folder, name = _download(text, revision, local_files_only=local_files_only), text
    else:
        known = bundled_names("model")
        raise ValueError(
            f"unknown model {text!r}{suggestion(text, known)} "
            "(or give a folder, a file or a Hugging Face repo id)"
        )
    if _is_huge(folder):
        model = _huge(folder, wanted_device, wanted_dtype, blocks_on_device)
        return Pipeline(model, name=name, folder=folder)
    if blocks_on_device is not None:
        raise ValueError(f"blocks_on_device is for Lumina-DiMOO, {name} is small: leave it out")
    return _from_folder(folder, name, wanted_device, wanted_dtype)


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
        caching: instead of a shortcut, a training-free rival: "reuse", "extrapolation-1", "extrapolation-2",
            and for Lumina-DiMOO "ml-cache" or "ml-cache-refreshed".
        marval: replaces MAR's diffusion head by one call: a student, a bundled name or a folder.
        speed_rl: weights that Speed-RL tuned for few steps: a bundled name, or the folder of a run, of its
            adapters (LoRA) or of the whole model. The pipeline's steps become those it was tuned for, and so
            does what its sampling leaves open.
        full_steps: how many steps still run the backbone, or which (step 0 among them). Default: what the
            shortcut's config says, else half of the pipeline's steps.

    Errors: ValueError unless exactly one of the four is given and fits the model; FileNotFoundError.
    """
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
        found = _find_method(shortcut, "shortcut")
        features_fn = _shortcut(pipeline, read_shortcut(found, base=pipeline.model.spec))
        default_full = _recommended_full_steps(found) or default_full
    placed = default_full if full_steps is None else full_steps
    return replace(pipeline, features_fn=features_fn, full_steps=_placement(placed), _flops={})


def dtype_named(name: str) -> torch.dtype:
    """Errors: ValueError naming the ones there are."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in names:
        raise ValueError(f"unknown dtype {name!r}{suggestion(name, names)}")
    return names[name]


def _is_huge(folder: Path) -> bool:
    """Whether a folder holds, or might hold, 8 billion weights."""
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    return config.get("model_type") == "llada" or config.get("model") == "lumina_dimoo"


def _huge(
    folder: Path, device: torch.device | None, dtype: torch.dtype | None, blocks_on_device: int | None
) -> MaskedGenerator:
    """Read straight into the wanted precision and place, never into float32 first."""
    family, place = generator_class("lumina_dimoo"), device or torch.device("cpu")
    if "model" in read_config(folder):
        return family.from_pretrained(
            folder, dtype=dtype or torch.float32, device=place, blocks_on_device=blocks_on_device
        )
    return family.from_released(
        folder, dtype=dtype or torch.bfloat16, device=place, blocks_on_device=blocks_on_device
    )


def _from_folder(folder: Path, name: str, device: torch.device | None, dtype: torch.dtype | None) -> Pipeline:
    if not (folder / "config.json").is_file():
        return _moved(_upstream(folder), device, dtype)
    config = read_config(folder)
    if "model" not in config:
        what = f"a {config['method']}" if "method" in config else "no model"
        mend = "pass it to accelerate(model, ...)" if "method" in config else "expected a model folder"
        raise ValueError(f"{folder} holds {what}: {mend}")
    model = generator_class(str(config["model"])).from_pretrained(folder)
    pipeline = Pipeline(model, name=name, folder=folder)
    return _moved(pipeline, device, dtype)


def _released(path: Path, codec: str | Path | None) -> Pipeline:
    if path.suffix not in _RELEASED_SUFFIXES:
        raise ValueError(
            f"{path} is no released weights file ({', '.join(_RELEASED_SUFFIXES)}): "
            "for a converted model give the folder it lies in"
        )
    if codec is None:
        raise ValueError(
            f"{path} holds no tokenizer: give its weights too, codec='VQGAN/last.ckpt' (on the command line, "
            "`swiftmask convert FILE --codec VQGAN/last.ckpt --out FOLDER`)"
        )
    # The only family released as loose files; another one would need a way to tell them apart.
    return Pipeline(generator_class("maskgit").from_released(path, codec), name=path.stem)


def _upstream(folder: Path) -> Pipeline:
    if (folder / "model_index.json").is_file():
        return Pipeline(generator_class("meissonic").from_released(folder), name=folder.resolve().name)
    transformers = sorted(folder.rglob("MaskGIT_ImageNet_*.pth"))
    codecs = sorted(path for path in folder.rglob("last.ckpt") if path.parent.name == "VQGAN")
    if not transformers or not codecs:
        raise FileNotFoundError(
            f"no model in {folder}: expected config.json with model.safetensors, "
            "or MaskGIT_ImageNet_*.pth and VQGAN/last.ckpt below it"
        )
    if len(transformers) > 1:
        names = " or ".join(str(path) for path in transformers)
        raise ValueError(f"{folder} holds several models: load {names} with codec={str(codecs[0])!r}")
    return _released(transformers[0], codecs[0])


def _download(repo_id: str, revision: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, local_files_only=local_files_only))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        known = bundled_names("model")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"no model {repo_id!r}{suggestion(repo_id.split('/')[-1], known)} "
            f"No such local folder, and Hugging Face gave nothing ({reason})"
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
    return replace(pipeline, model=student, _flops={})


def _read_student(pipeline: Pipeline, source: str | Path) -> Student:
    model = pipeline.model
    if not hasattr(model, "denoise"):
        raise ValueError(f"{pipeline.name} has no diffusion head for marval to replace: use a mar model")
    return read_student(_find_method(source, "MARVAL student"), cast(DenoisingModel, model))


def _tuned(pipeline: Pipeline, source: str | Path, full_steps: int | Sequence[int] | None) -> Pipeline:
    """The pipeline with the tuned weights in the model's place."""
    if full_steps is not None:
        raise ValueError("full_steps goes with a shortcut or caching: speed_rl has weights for fewer steps")
    if pipeline.features_fn is not None:
        raise ValueError("give speed_rl first, then the shortcut or caching that runs on its model")
    bundled = str(source) in bundled_names()
    folder = bundled_folder(str(source)) if bundled else _find_method(source, "Speed-RL result")
    if (folder / "policy").is_dir():  # what a run left: see recipes/speed_rl_scenes.py
        folder = folder / "policy"
    model, config = _read_tuned(pipeline, folder), read_config(folder)
    try:
        steps, sampling = (
            int(config.get("steps", pipeline.steps)),
            SamplingOptions(**config.get("sampling", {})),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}/config.json: damaged steps or sampling ({first_line(error)})") from error
    return replace(pipeline, model=model, steps=steps, sampling=pipeline.sampling.over(sampling), _flops={})


def _read_tuned(pipeline: Pipeline, folder: Path) -> MaskedGenerator:
    """A plain model of the base's kind: adapters are folded into the weights, so that a step costs what it
    costs the base.
    """
    config = read_config(folder)
    if "model" not in config:
        return merged(read_policy(folder, pipeline.model))
    model = generator_class(str(config["model"])).from_pretrained(folder)
    if model.spec != pipeline.model.spec:
        raise ValueError(
            f"{folder} was tuned from another model than {pipeline.name}: expected {pipeline.model.spec}, "
            f"got {model.spec}"
        )
    return model.to(device=pipeline.model.device, dtype=_model_dtype(pipeline))


def _find_method(source: str | Path, what: str) -> Path:
    path = Path(source).expanduser()
    if str(source) in bundled_names("method"):
        return bundled_folder(str(source))
    if path.exists():
        return path
    if _looks_like_path(str(source)) or "/" in str(source):
        raise FileNotFoundError(f"no such {what} file or folder: {source}")
    known = bundled_names("method")
    raise ValueError(f"unknown {what} {str(source)!r}{suggestion(str(source), known)}")


def _shortcut(pipeline: Pipeline, shortcut: AnyShortcut) -> FeatureFn:
    shortcut = shortcut.to(device=pipeline.model.device, dtype=_model_dtype(pipeline)).eval()
    return ShortcutFeatures(pipeline.model, shortcut)


def _caching(pipeline: Pipeline, caching: str) -> FeatureFn:
    if caching not in CACHINGS:
        raise ValueError(f"unknown caching {caching!r}{suggestion(caching, CACHINGS)}")
    return CACHINGS[caching](pipeline.model)


def _recommended_full_steps(path: Path) -> int | None:
    recommended = read_config(path).get("full_steps") if path.is_dir() else None
    return int(recommended) if isinstance(recommended, int) else None


def _placement(full_steps: int | Sequence[int]) -> int | tuple[int, ...]:
    if isinstance(full_steps, int):
        if full_steps < 1:
            raise ValueError(f"full_steps must be at least 1 (step 0 is always full), got {full_steps}")
        return full_steps
    placed = tuple(sorted({int(index) for index in full_steps}))
    if not placed or placed[0] != 0:
        raise ValueError(f"full_steps must contain step 0 (nothing precedes it), got {list(placed)}")
    return placed


def _model_dtype(pipeline: Pipeline) -> torch.dtype:
    model = pipeline.model
    return next(model.parameters()).dtype if isinstance(model, torch.nn.Module) else torch.float32


def _moved(pipeline: Pipeline, device: torch.device | None, dtype: torch.dtype | None) -> Pipeline:
    return pipeline if device is None and dtype is None else pipeline.to(device, dtype)


def device_named(device: torch.device | str | None) -> torch.device | None:
    """Errors: ValueError for a device that does not exist here."""
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {str(device)!r}: use cpu, cuda or mps") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but this PyTorch sees no GPU: use device='cpu'")
    return wanted


def _looks_like_path(text: str) -> bool:
    marked = text.startswith((".", "/", "~")) or text.count("/") > 1
    return marked or text.endswith((*_RELEASED_SUFFIXES, ".safetensors"))
