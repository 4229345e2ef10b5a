"""Five nodes of ComfyUI: Load, Accelerate, Generate, Inpaint and Cost.

Install swiftmask beside ComfyUI, and write one file `custom_nodes/swiftmask/__init__.py`:

    from swiftmask.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

The conventions are ComfyUI's: IMAGE is float32 [B, H, W, 3] in [0, 1], MASK is float32 [B, H, W] with 1 where
to generate anew, and a seed has 64 bits. A batch takes the seeds from `seed` on, each of which gives the same
image in any batch.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from swiftmask.api import CACHINGS, accelerate, load
from swiftmask.core.ranges import GUIDANCE, RANGES, SEED
from swiftmask.core.types import Record
from swiftmask.data.images.inpainting import StartImage
from swiftmask.data.images.pixels import to_pil
from swiftmask.pipeline import Cost, Pipeline

_CATEGORY = "swiftmask"
_PIPELINE, _COST = "SWIFTMASK_PIPELINE", "SWIFTMASK_COST"
_METHODS = ("shortcut", "caching", "marval", "speed_rl")
_OWN = 0
"""Of steps, full steps and guidance: what the model or the accelerator was made with."""

_MOST_IMAGES = 4096

Inputs = dict[str, dict[str, Any]]


def _count(low: int, high: int, default: int, tooltip: str) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": low, "max": high, "tooltip": tooltip})


def _text(default: str, tooltip: str) -> tuple[str, dict[str, Any]]:
    return ("STRING", {"default": default, "multiline": False, "tooltip": tooltip})


def _generation() -> dict[str, Any]:
    """Inputs that Generate and Inpaint share."""
    steps = int(RANGES["steps"].high)
    return {
        "pipeline": (_PIPELINE,),
        "prompt": ("STRING", {"default": "", "multiline": True, "tooltip": "Prompt, or a class."}),
        "seed": ("INT", {"default": 0, "min": 0, "max": int(SEED.high), "control_after_generate": True}),
        "batch_size": _count(1, _MOST_IMAGES, 1, "Images; their seeds follow each other."),
        "steps": _count(0, steps, _OWN, "Decode steps; 0 is the pipeline's own."),
        "guidance": (
            "FLOAT",
            {"default": 0.0, "min": 0.0, "max": float(GUIDANCE.high), "step": 0.1,
             "tooltip": "1 is off; 0 is the model's own."},
        ),
    }  # fmt: skip


class Load:
    """A base model from a bundled name, a folder, a released file or a Hugging Face repo id."""

    CATEGORY, FUNCTION = _CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (_PIPELINE,), ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "source": _text("maskgit-scenes", "Bundled name, folder, file, or Hugging Face repo id."),
                "dtype": (["auto", "float32", "bfloat16", "float16"],),
                "device": _text("auto", "auto is the first CUDA GPU, else the CPU."),
            },
            "optional": {"codec": _text("", "The tokenizer's weights, for a released MaskGIT or MAR.")},
        }

    def load(self, source: str, dtype: str, device: str, codec: str = "") -> tuple[Pipeline]:
        return (load(source.strip(), dtype=dtype, device=device.strip(), codec=codec.strip() or None),)


class Accelerate:
    """The same model, cheaper."""

    CATEGORY, FUNCTION = _CATEGORY, "accelerate"
    RETURN_TYPES, RETURN_NAMES = (_PIPELINE,), ("pipeline",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        full = int(RANGES["full_steps"].high)
        return {
            "required": {
                "pipeline": (_PIPELINE,),
                "method": (list(_METHODS),),
                "source": _text(
                    "maskgit-scenes-shortcut", f"Weights of the method; of caching: {', '.join(CACHINGS)}."
                ),
                "full_steps": _count(0, full, _OWN, "Steps that run the backbone; 0 is the method's own."),
            }
        }

    def accelerate(self, pipeline: Pipeline, method: str, source: str, full_steps: int) -> tuple[Pipeline]:
        chosen: dict[str, Any] = {method: source.strip()}
        return (accelerate(pipeline, **chosen, full_steps=None if full_steps == _OWN else full_steps),)


class Generate:
    """Images of a prompt or a class, and what they cost."""

    CATEGORY, FUNCTION = _CATEGORY, "generate"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", _COST), ("images", "cost")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        negative = _text("", "What guidance leads away from (Meissonic).")
        return {"required": _generation(), "optional": {"negative_prompt": negative}}

    def generate(
        self,
        pipeline: Pipeline,
        prompt: str,
        seed: int,
        batch_size: int,
        steps: int,
        guidance: float,
        negative_prompt: str = "",
    ) -> tuple[Tensor, Cost]:
        options = {"negative_prompt": negative_prompt or None}
        return _generated(pipeline, prompt, _seeds(seed, batch_size), steps, guidance, options)


class Inpaint:
    """Images whose pixels outside the mask are those of the image that was given, unchanged."""

    CATEGORY, FUNCTION = _CATEGORY, "inpaint"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", _COST), ("images", "cost")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {"required": {**_generation(), "image": ("IMAGE",), "mask": ("MASK",)}}

    def inpaint(
        self,
        pipeline: Pipeline,
        prompt: str,
        seed: int,
        batch_size: int,
        steps: int,
        guidance: float,
        image: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Cost]:
        start = _start(pipeline, image, mask)
        return _generated(pipeline, prompt, _seeds(seed, batch_size), steps, guidance, {"start": start})


class CostOfImages:
    """What a generation cost: operations and calls per image, and seconds, as text too."""

    CATEGORY, FUNCTION, OUTPUT_NODE = _CATEGORY, "cost", True
    RETURN_TYPES, RETURN_NAMES = ("FLOAT", "FLOAT", "STRING"), ("gflop per image", "seconds", "text")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {"required": {"cost": (_COST,)}}

    def cost(self, cost: Cost) -> dict[str, Any]:
        gflop, seconds = cost.flops / 1e9, cost.seconds + cost.decoder_seconds
        calls = ", ".join(f"{name} {count}" for name, count in cost.calls.items())
        text = f"{gflop:.2f} GFLOP per image, {seconds:.2f} s for the batch; calls per image: {calls}"
        return {"ui": {"text": [text]}, "result": (gflop, seconds, text)}


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "SwiftmaskLoad": Load,
    "SwiftmaskAccelerate": Accelerate,
    "SwiftmaskGenerate": Generate,
    "SwiftmaskInpaint": Inpaint,
    "SwiftmaskCost": CostOfImages,
}
"""What ComfyUI looks for: nodes by the names that saved workflows use."""

NODE_DISPLAY_NAME_MAPPINGS = {
    "SwiftmaskLoad": "swiftmask: Load",
    "SwiftmaskAccelerate": "swiftmask: Accelerate",
    "SwiftmaskGenerate": "swiftmask: Generate",
    "SwiftmaskInpaint": "swiftmask: Inpaint",
    "SwiftmaskCost": "swiftmask: Cost",
}


def _generated(
    pipeline: Pipeline,
    prompt: str,
    seeds: list[int],
    steps: int,
    guidance: float,
    options: dict[str, Any],
) -> tuple[Tensor, Cost]:
    """Images [B, H, W, 3] on the CPU, and their cost. Errors: those of `Pipeline.generate`."""
    asked: list[Any] = [prompt.strip()] * len(seeds)
    of_class = pipeline.model.spec.draws == "class"
    steps = pipeline.steps if steps == _OWN else steps
    result = pipeline.generate(
        asked if of_class else None,
        prompts=None if of_class else asked,
        seeds=seeds,
        steps=steps,
        guidance=None if guidance == _OWN else guidance,
        output_type="pt",
        on_step=_on_step(steps),
        **options,
    )
    assert isinstance(result.images, Tensor)
    return result.images.float().permute(0, 2, 3, 1).contiguous().cpu(), result.cost


def _seeds(seed: int, count: int) -> list[int]:
    """From `seed` on; after the largest comes 0."""
    return [(seed + place) % (int(SEED.high) + 1) for place in range(count)]


def _start(pipeline: Pipeline, image_BHW3: Tensor, mask_BHW: Tensor) -> StartImage:
    """Errors: ValueError for several images, or sizes that do not fit (`Pipeline.start`)."""
    mask_BHW = mask_BHW[None] if mask_BHW.ndim == 2 else mask_BHW
    if len(image_BHW3) != 1 or len(mask_BHW) != 1:
        raise ValueError(f"expected one image and one mask, got {len(image_BHW3)} and {len(mask_BHW)}")
    (image,) = to_pil(image_BHW3[..., :3].permute(0, 3, 1, 2))
    white_HW = (mask_BHW[0].cpu() > 0.5).to(torch.uint8) * 255
    return pipeline.start(image, Image.fromarray(white_HW.numpy()))


def _on_step(steps: int) -> Callable[[Record], None]:
    """Moves ComfyUI's progress bar and heeds its cancel button, where ComfyUI is there."""
    try:
        comfy, management = import_module("comfy.utils"), import_module("comfy.model_management")
    except ImportError:
        return lambda record: None
    bar = comfy.ProgressBar(steps)

    def on_step(record: Record) -> None:
        bar.update(1)
        management.throw_exception_if_processing_interrupted()

    return on_step
