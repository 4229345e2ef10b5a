"""`MaskedImagePipeline`: a pipeline of ours that tools of diffusers take for one of theirs.

It has the call, the callbacks, and the files of a `DiffusionPipeline`. Images come from `Pipeline.generate`,
so they are the same as without diffusers for the same seeds.

Not implemented: variants, quantization and device maps at loading, offloading by diffusers, LoRA adapters,
`latents` to start from, and `strength`: kept pixels stay, and the others are generated anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from swiftmask.api import find_model, load
from swiftmask.core.optional import library
from swiftmask.core.steering import Steer
from swiftmask.core.types import Record
from swiftmask.core.writing import write_json, write_text
from swiftmask.integrations.folder import SETTINGS, read_pipeline, write_pipeline
from swiftmask.pipeline import Pipeline, Result

library("diffusers", "swiftmask.integrations.diffusers")

# Below, because the line before says which extra installs the library.
from diffusers import __version__ as diffusers_version  # noqa: E402
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback  # noqa: E402
from diffusers.configuration_utils import ConfigMixin  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402
from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # noqa: E402
from diffusers.utils.outputs import BaseOutput  # noqa: E402

OutputType = Literal["pil", "pt", "np", "latent"]
Callback = Callable[["MaskedImagePipeline", int, int, dict[str, Any]], dict[str, Any] | None]

_INDEX, _MODEL = "model_index.json", "model"
_PIPELINE_CODE = '''"""Run by `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`."""

from swiftmask.integrations.diffusers import MaskedImagePipeline
'''
_MODEL_CODE = '''"""The component of pipeline.py."""

from swiftmask.integrations.diffusers import MaskedImageModel
'''
_CARD = """---
library_name: diffusers
tags:
- masked-image-generation
- swiftmask
---

# {name}

A masked image generator, saved with swiftmask: {settings}.

```python
from swiftmask.integrations.diffusers import MaskedImagePipeline

pipe = MaskedImagePipeline.from_pretrained("{repo}")
image = pipe({prompt}).images[0]
```
"""


class MaskedImageModel(ModelMixin, ConfigMixin):
    """A pipeline of ours as the only component of a diffusers pipeline: model, accelerator and settings.

    Attributes:
        pipeline: what generates.
    """

    config_name = SETTINGS
    _keep_in_fp32_modules = None

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline
        for name, part in (("generator", pipeline.model), ("accelerator", pipeline.features_fn)):
            if isinstance(part, nn.Module):
                setattr(self, name, part)
        self.register_to_config(name=pipeline.name, steps=pipeline.steps)

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:  # type: ignore[override]
        """Write the folder of integrations/folder.py, and the file that diffusers finds this class by."""
        write_pipeline(Path(save_directory), self.pipeline)
        write_text(Path(save_directory) / "swiftmask_model.py", _MODEL_CODE)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        torch_dtype: torch.dtype | None = None,
        **loading: object,
    ) -> Self:
        """A component of a saved folder, on the CPU.

        Args:
            loading: what diffusers tells every component. None of it is needed here, and a variant, a device
                map or a quantization is refused.

        Errors: ValueError; FileNotFoundError.
        """
        wanted = [k for k in ("variant", "device_map", "quantization_config") if loading.get(k) is not None]
        if wanted:
            raise ValueError(
                f"a swiftmask pipeline has no {' and no '.join(wanted)}: leave it out, use to(...)"
            )
        return cls(read_pipeline(Path(pretrained_model_name_or_path), dtype=torch_dtype))


@dataclass
class MaskedImageOutput(BaseOutput):
    """What a call returns.

    Attributes:
        images: PIL images; a tensor [B, 3, H, W] ("pt") or array [B, H, W, 3] ("np") in [0, 1]; or tokens
            [B, L] or [B, L, C] ("latent").
        result: seeds, cost and trajectory (`swiftmask.Result`).
    """

    images: Any
    result: Result


class MaskedImagePipeline(DiffusionPipeline):
    """A diffusers pipeline around `pipeline`, as `swiftmask.load` or `swiftmask.accelerate` gives it."""

    _callback_tensor_inputs = ["latents", "masked"]
    _guidance_scale: float | None = None
    _interrupt: bool = False
    _num_timesteps: int = 0

    def __init__(self, model: MaskedImageModel | Pipeline) -> None:
        super().__init__()
        self.register_modules(model=MaskedImageModel(model) if isinstance(model, Pipeline) else model)

    @property
    def pipeline(self) -> Pipeline:
        """What generates."""
        return self.model.pipeline

    @property
    def guidance_scale(self) -> float | None:
        """Of the run; a callback that sets `_guidance_scale` changes the steps to come."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Decode steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `_interrupt`, which ends the run after its step."""
        return self._interrupt

    def __call__(  # noqa: PLR0913 - the arguments that diffusers' tools pass
        self,
        prompt: str | int | Sequence[str] | Sequence[int],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: Sequence[int] | None = None,
        image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> MaskedImageOutput | tuple[Any]:
        """Generate `num_images_per_prompt` images of every prompt, those of one prompt in a row.

        Args:
            prompt: texts, or classes by name or number where the model has classes.
            guidance_scale: 1 and below is off; None is the pipeline's.
            generator: draws one seed of 64 bits per image; a list has one for each image. None draws from
                PyTorch's own.
            seeds: instead of a generator, the seeds that `Pipeline.generate` takes: 0 to 2^64 - 1, one per
                image.
            image, mask_image: what to keep, and in white what to generate anew (`Pipeline.start`).
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)`; `timestep` is the
                number of tokens that are still masked. It may set `pipe._guidance_scale` for the steps to
                come, and `pipe._interrupt = True` to stop: images are then grey where nothing is decided.
            callback_on_step_end_tensor_inputs: of "latents" (tokens) and "masked", to look at.

        Errors: ValueError or TypeError as `Pipeline.generate`; ValueError if a callback changes a tensor.
        """
        if output_type not in get_args(OutputType):
            raise ValueError(
                f"output_type must be one of {', '.join(get_args(OutputType))}, got {output_type!r}"
            )
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._check_names(callback_on_step_end_tensor_inputs)
        asked = _repeated(prompt, num_images_per_prompt)
        pipeline = self.pipeline
        of_class = pipeline.model.spec.draws == "class"
        steps = pipeline.steps if num_inference_steps is None else num_inference_steps
        self._guidance_scale, self._interrupt, self._num_timesteps = guidance_scale, False, steps
        progress_bar: Any = self.progress_bar  # typed as a decorator where there is no total
        with progress_bar(total=steps) as bar:

            def on_step(record: Record) -> Steer | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                return self._steer(callback_on_step_end, callback_on_step_end_tensor_inputs, record)

            result = pipeline.generate(
                asked if of_class else None,
                prompts=None if of_class else asked,
                negative_prompt=_negatives(negative_prompt, num_images_per_prompt),
                seeds=_seeds(generator, len(asked)) if seeds is None else seeds,
                steps=steps,
                guidance=None if guidance_scale is None else _ours(guidance_scale),
                size=self._size(height, width),
                start=_start(pipeline, image, mask_image),
                output_type="pil" if output_type == "pil" else "pt",
                on_step=on_step,
            )
        images = _as_asked(result, output_type)
        return MaskedImageOutput(images=images, result=result) if return_dict else (images,)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | PathLike[str],
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
    ) -> None:
        """Write a folder that both `from_pretrained` read: this class's, and with `trust_remote_code=True`
        that of `DiffusionPipeline`.

        Errors: ValueError for pickled weights or a variant, or what the folder of a pipeline cannot hold.
        """
        if not safe_serialization or variant is not None:
            raise ValueError("weights are written as safetensors, of one variant: leave both options out")
        folder = Path(save_directory)
        self.model.save_pretrained(folder / _MODEL)
        write_text(folder / "pipeline.py", _PIPELINE_CODE)
        write_text(folder / "README.md", self._card(repo_id or folder.name))
        index = {
            "_class_name": ["pipeline", "MaskedImagePipeline"],
            "_diffusers_version": diffusers_version,
            _MODEL: ["swiftmask_model", "MaskedImageModel"],
        }
        write_json(folder / _INDEX, index)
        if push_to_hub:
            self.push_to_hub(repo_id or folder.name)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """A saved pipeline, or whatever `swiftmask.load` takes, on the CPU; no code of the folder runs.

        Errors: FileNotFoundError or ValueError saying what was found and what would work.
        """
        dtype = torch_dtype if dtype is None else dtype
        source = str(pretrained_model_name_or_path)
        path, _ = find_model(source, revision, local_files_only=local_files_only)
        if (path / _MODEL / SETTINGS).is_file():
            return cls(read_pipeline(path / _MODEL, dtype=dtype))
        return cls(
            load(source, dtype=dtype, device="cpu", revision=revision, local_files_only=local_files_only)
        )

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload MaskedImagePipeline",
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what `save_pretrained` writes. A README.md that the repository has stays as it is.

        Returns: the address of the commit.
        """
        import huggingface_hub

        hub = huggingface_hub.HfApi(token=token)
        name = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        has_card = hub.file_exists(name, "README.md")
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=name)
            commit = hub.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=commit_message,
                create_pr=create_pr,
                ignore_patterns=["README.md"] if has_card else None,
            )
        return str(commit)

    def enable_model_cpu_offload(self, *args: object, **kwargs: object) -> None:
        """Errors: ValueError. Lumina-DiMOO has offloading of its own (`load(blocks_on_device=...)`)."""
        raise ValueError(
            "diffusers cannot offload a swiftmask model: load it with blocks_on_device=N instead"
        )

    enable_sequential_cpu_offload = enable_model_cpu_offload

    def _check_names(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs must be of {self._callback_tensor_inputs}, got {unknown}"
            )

    def _steer(self, callback: Callback, names: Sequence[str], record: Record) -> Steer | None:
        """Call a callback of diffusers, and put what it set on the pipeline into our terms."""
        every = {"latents": record.after.tokens_BL, "masked": record.after.masked_BL}
        given, before = {name: every[name] for name in names}, self._guidance_scale
        returned = callback(self, record.step.index, record.after.num_masked, dict(given)) or {}
        if any(returned.get(name, tensor) is not tensor for name, tensor in given.items()):
            raise ValueError(
                "a callback cannot exchange tokens: return the tensors that it was given, or None"
            )
        if self._interrupt:
            return Steer(stop=True)
        if self._guidance_scale == before or self._guidance_scale is None:
            return None
        return Steer(guidance=_ours(self._guidance_scale))

    def _size(self, height: int | None, width: int | None) -> tuple[int, int] | None:
        """None is the model's own, and so is a size that equals it."""
        own = self.pipeline.image_size()
        asked = (own[0] if height is None else height, own[1] if width is None else width)
        return None if asked == own else asked

    def _card(self, repo: str) -> str:
        pipeline = self.pipeline
        method = "" if pipeline.features_fn is None else f", {pipeline.features_fn.name}"
        settings = f"{pipeline.model.spec.name}{method}, {pipeline.steps} steps"
        prompt = "0" if pipeline.model.spec.draws == "class" else '"..."'
        return _CARD.format(name=pipeline.name, settings=settings, repo=repo, prompt=prompt)


def _ours(guidance_scale: float) -> float:
    """diffusers turns guidance off at 1 and below, down to 0; here 1 is off and less is refused."""
    return 1.0 if 0 <= guidance_scale < 1 else guidance_scale


def _repeated(prompt: str | int | Sequence[str] | Sequence[int], count: int) -> list[Any]:
    prompts = [prompt] if isinstance(prompt, str | int) else list(prompt)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"num_images_per_prompt must be a whole number of at least 1, got {count!r}")
    return [each for each in prompts for _ in range(count)]


def _negatives(given: str | Sequence[str] | None, count: int) -> str | list[str] | None:
    if given is None or isinstance(given, str):
        return given
    return [each for each in given for _ in range(count)]


def _seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """One seed of 64 bits per image. Images of a generator do not depend on how many follow them."""
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        halves_B2 = torch.randint(2**32, (count, 2), generator=generator, device=device)
        return [high << 32 | low for high, low in halves_B2.tolist()]
    generators = list(generator)
    if len(generators) != count:
        raise ValueError(
            f"one generator for all images, or one each: got {len(generators)} for {count} images"
        )
    return [seed for each in generators for seed in _seeds(each, 1)]


def _start(pipeline: Pipeline, image: Image.Image | None, mask: Image.Image | None) -> Any:
    if image is None and mask is not None:
        raise ValueError("mask_image needs an image: give both")
    return None if image is None else pipeline.start(image, mask)


def _as_asked(result: Result, output_type: OutputType) -> Any:
    if output_type == "latent":
        return result.trajectory.canvas.tokens_BL
    if output_type != "np":
        return result.images
    assert isinstance(result.images, Tensor)
    return np.ascontiguousarray(result.images.float().permute(0, 2, 3, 1).cpu().numpy())
