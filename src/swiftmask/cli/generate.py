"""`swiftmask generate`: images to a folder, resumable."""

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from swiftmask.cli import jobs, measure
from swiftmask.cli.drawing import Prepared, Spent, cost_of, sentence
from swiftmask.cli.jobs import Job
from swiftmask.cli.loading import own_device, say_where
from swiftmask.cli.output_folder import OutputFolder
from swiftmask.cli.progress import progress_bar
from swiftmask.core.writing import write_text
from swiftmask.training.lock import sole_writer

if TYPE_CHECKING:
    from swiftmask.core.types import Record
    from swiftmask.data.images import Decoding
    from swiftmask.data.images.inpainting import StartImage
    from swiftmask.evaluate.presets import Settings
    from swiftmask.pipeline import Pipeline

_SHARD_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Generate images to a folder: one PNG each, grid.png, and generate.json with the settings and the cost.

    An image that is already there with the same settings is not generated again; a folder with images of
    other settings is refused. Processes that torchrun started share the images. With --shards: files of many
    images and manifest.json.
    """

    model: Positional[str]
    """Bundled name (see swiftmask models), model folder, released file, or Hugging Face repo id."""
    labels: Positional[tuple[str, ...]] = ()
    """Classes to generate, by number or name; of a text-to-image model, prompts."""
    classes: tuple[str, ...] = ()
    """The same as an option."""
    prompt: tuple[str, ...] = ()
    """Prompts, for a text-to-image model."""
    prompts: Path | None = None
    """File of prompts: one a line, or .jsonl, .csv or .parquet with columns prompt, negative_prompt, seed."""
    truncate: bool = False
    """Cut prompts that are too long for the model instead of refusing them."""
    negative_prompt: tuple[str, ...] = ()
    """What not to show: one for all prompts, or one for each."""
    size: tuple[int, ...] = ()
    """Side of the images in pixels, or height and width, for a model of several sizes."""
    init_image: Path | None = None
    """Image to start from; one smaller than the model's is placed in the middle (outpainting)."""
    mask: Path | None = None
    """Image as large as --init-image; what is white in it is generated anew (inpainting)."""
    background: str = "white"
    """Colour behind an --init-image that is transparent: a name, or #rrggbb."""
    num: Annotated[int, arg(aliases=("--num-images",))] = 1
    """Images per class or prompt, with seeds from --seed on. torchrun takes --num for an option of its own:
    write --num-images there."""
    seed: int = 0
    """First seed."""
    seeds: tuple[int, ...] = ()
    """The seeds themselves, instead of --num and --seed."""
    steps: int | None = None
    """Decode steps (default: the model's own)."""
    full_steps: int | None = None
    """How many of them run the whole model (with --shortcut or --caching)."""
    shortcut: str | None = None
    """Bundled name, folder or file of a shortcut; auto, or no name, takes the model's own."""
    caching: measure.Caching | None = None
    """A training-free baseline instead."""
    marval: str | None = None
    """Bundled name or folder of a MARVAL student, which generates a token in one head call; auto, or no
    name, takes the model's own. Goes with --shortcut and --caching."""
    speed_rl: str | None = None
    """Bundled name or folder of what Speed-RL tuned for few steps, adapters or whole weights; auto,
    or no name, takes the model's own. Goes with --shortcut and --caching."""
    preset: Path | None = None
    """File of settings that swiftmask tune found best; options beside it override it."""
    guidance: float | None = None
    """Guidance scale; 1 is off."""
    temperature: float | None = None
    """Divides the logits."""
    choice_temperature: float | None = None
    """Noise on which tokens are kept first."""
    schedule_power: float | None = None
    """Above 1, more tokens are decided in the first steps and fewer in the last; 1 is the model's own."""
    denoising_steps: tuple[int, ...] = ()
    """Head calls per token of a diffusion head; two numbers anneal from the first to the second."""
    sampler: Literal["ancestral", "ddim"] | None = None
    """Of a diffusion head."""
    codec: Path | None = None
    """Tokenizer of a released file: VQGAN/last.ckpt of MaskGIT, kl16.ckpt of MAR."""
    text_encoder: str | None = None
    """Folder or Hugging Face repo id of another CLIP text encoder, for Meissonic as released."""
    dtype: str = "auto"
    """float32, bfloat16 or float16; auto is the model's own."""
    matmul_precision: Literal["highest", "high"] = "highest"
    """Of float32 matmuls on a GPU: "high" computes them in TF32."""
    device: str = "auto"
    """cpu, cuda or mps; auto is cuda where there is a GPU, else cpu."""
    blocks_on_device: int | None = None
    """Of Lumina-DiMOO on a card it does not fit: blocks that stay there, while the others wait in memory."""
    compile: str | None = None
    """Compile the repeated blocks with torch.compile; a mode of it, or no name for its default."""
    out: Path = Path("pictures")
    """Folder of the images."""
    batch_size: int = 16
    """Images at a time."""
    shards: Literal["folder", "webdataset", "parquet"] | None = None
    """Write shards of many images and a manifest: folders of PNG files, WebDataset tars, or Parquet files."""
    shard_size: int = _SHARD_SIZE
    """Images of a shard."""
    engine: Literal["ray"] | None = None
    """ray: a pool of --workers processes generates shards, on this machine or on the Ray cluster that it
    belongs to (extra ray, docs/cluster.md)."""
    workers: int = 1
    """Processes of --engine ray, each with a model of its own."""
    gpus_per_worker: float | None = None
    """GPUs of each of them (default: 1 where the cluster has GPUs)."""
    overwrite: bool = False
    """Generate into a folder that holds images of other settings; those with the same names are replaced, and
    shards of other settings are removed."""
    flops: bool = False
    """Count operations, too: seconds for a small model, a minute for a large one in many steps."""
    json: bool = False
    """Print the summary as JSON."""

    def run(self) -> int:
        self._check_options()
        if self.engine == "ray":
            from swiftmask.cli.generate_ray import generate_on_ray

            return generate_on_ray(self)
        if self.shards is not None:
            from swiftmask.cli.generate_shards import generate_shards

            return generate_shards(self)
        from swiftmask.evaluate.processes import Processes

        prepared = self.prepared()
        wanted = prepared.wanted
        folder = OutputFolder(self.out, prepared.settings)
        processes = Processes.here()
        if not self.overwrite:
            folder.refuse_others(wanted)
        with sole_writer(self.out):
            processes.wait()  # none generates before the first holds the folder
            drawn = self._draw(prepared, folder, processes.share(wanted))
            spent = [batch for batches in processes.gathered(drawn) for batch in batches]
            if processes.rank == 0:
                self._summarise(folder, wanted, spent)
        return 0

    def prepared(self) -> Prepared:
        """The loaded model and all that is asked of it. Errors: ValueError for what it cannot generate."""
        opened = self.opened()
        wanted = self._jobs(opened.pipeline.model.spec.draws)
        if self.truncate:
            wanted = list(dict.fromkeys(jobs.truncated(opened.pipeline, wanted)))
        jobs.check_jobs(opened.pipeline, wanted, self.prompts)
        return replace(opened, wanted=wanted)

    def opened(self) -> Prepared:
        """The loaded model, of which nothing is asked yet. Errors: ValueError for impossible steps."""
        pipeline = self._pipeline()
        start = self._start(pipeline)
        return Prepared(pipeline, (), self._settings(pipeline, start), start, self.flops)

    def _draw(self, prepared: Prepared, folder: OutputFolder, jobs_here: Sequence[Job]) -> list[Spent]:
        """Generate what is missing, and keep of it nothing but what it cost."""
        spent: list[Spent] = []
        missing = folder.missing(jobs_here)
        if missing:
            say_where(prepared.pipeline)
        with progress_bar() as progress:
            task = progress.add_task("image steps", total=len(missing) * prepared.pipeline.steps)
            for first in range(0, len(missing), self.batch_size):
                batch = missing[first : first + self.batch_size]

                def advance(record: "Record", size: int = len(batch)) -> None:
                    progress.advance(task, size)

                images, took = prepared.draw(batch, on_step=advance)
                for job, image in zip(batch, images, strict=True):
                    folder.save(image, job)
                spent.append(took)
        return spent

    def _summarise(self, folder: OutputFolder, wanted: Sequence[Job], spent: list[Spent]) -> None:
        """The overview, generate.json, and what is said on stdout, once all images are there."""
        from swiftmask.evaluate.image_sets import OVERVIEW

        folder.save_overview(OVERVIEW, wanted)
        drawn = sum(batch.num_images for batch in spent)
        summary = {
            "settings": folder.settings,
            "drawn": drawn,
            "skipped": len(wanted) - drawn,
            "cost": cost_of(spent),
            "pictures": [{"file": job.file_name, **job.facts()} for job in wanted],
        }
        text = json_module.dumps(summary, indent=2)
        write_text(self.out / "generate.json", text + "\n")
        print(text if self.json else sentence(summary, self.out))

    def _check_options(self) -> None:
        """What is wrong whatever the model is, told before it is loaded."""
        if (self.labels or self.classes) and (self.prompt or self.prompts):
            raise ValueError("give classes or --prompt, not both")
        if not (self.labels or self.classes or self.prompt or self.prompts):
            raise ValueError(
                "nothing to generate: name classes, as in `swiftmask generate MODEL 0 1 2` (or --prompt)"
            )
        if self.seeds and (self.seed, self.num) != (0, 1):
            raise ValueError("--seeds beside --seed or --num: name the seeds, or the first one and how many")
        if self.negative_prompt and (self.classes or self.guidance == 1.0):
            wrong = "classes" if self.classes else "--guidance 1, which turns it off"
            raise ValueError(f"--negative-prompt needs prompts and guidance, got {wrong}")
        accelerated = self.shortcut is not None or self.caching is not None or self.preset is not None
        if self.full_steps is not None and not accelerated:
            raise ValueError("--full-steps needs --shortcut or --caching: without them every step is full")
        if self.mask is not None and self.init_image is None:
            raise ValueError("--mask says what of --init-image is generated anew: give both")
        self._decoding()  # complains about a background that is no colour
        self._check_shards()
        if len(self.size) > 2:
            raise ValueError(
                f"--size takes one number, or a height and a width, got {len(self.size)} numbers"
            )

    def _check_shards(self) -> None:
        from swiftmask.fleet.writers import KINDS

        if self.shards is not None:
            KINDS[self.shards].require()
        elif self.shard_size != _SHARD_SIZE and self.engine is None:
            raise ValueError("--shard-size needs --shards: say which kind of shards to write")
        if self.engine is None and (self.workers, self.gpus_per_worker) != (1, None):
            raise ValueError("--workers and --gpus-per-worker need --engine ray")

    def _jobs(self, draws: str) -> list[Job]:
        """What to generate with which seed. Names without an option are whatever the model generates."""
        seeds = self.seeds or tuple(range(self.seed, self.seed + self.num))
        if draws == "class":
            return jobs.class_jobs((*self.labels, *self.classes), seeds)
        prompts, option = (
            (*self.labels, *self.prompt),
            "--seeds" if self.seeds else "--seed" * bool(self.seed),
        )
        return jobs.prompt_jobs(prompts, self.prompts, self.negative_prompt, seeds, option=option)

    def _pipeline(self) -> "Pipeline":
        """The loaded model with everything that is asked of it."""
        import torch

        from swiftmask.api import load
        from swiftmask.evaluate.processes import Processes
        from swiftmask.presets import apply_preset, apply_settings

        torch.set_float32_matmul_precision(self.matmul_precision)
        pipeline = load(
            self.model,
            dtype=self.dtype,
            device=str(own_device(Processes.here(), self.device)),
            codec=self.codec,
            text_encoder=self.text_encoder,
            blocks_on_device=self.blocks_on_device,
            compile=self.compile or False,
        )
        self._check_kind(pipeline)
        if self.preset is not None:
            return apply_preset(pipeline, self.preset, beside=self._asked())
        return apply_settings(pipeline, self._asked())

    def _asked(self) -> "Settings":
        """The options that decide how the model generates."""
        from swiftmask.core.protocol import SamplingOptions
        from swiftmask.evaluate.presets import Settings

        accelerators = {
            method: measure.own(self.model, chosen, method)
            for method in measure.METHODS
            if (chosen := getattr(self, method)) is not None
        }
        return Settings(
            **accelerators,
            steps=self.steps,
            caching=self.caching,
            full_steps=self.full_steps,
            size=(self.size[0], self.size[-1]) if self.size else None,
            sampling=SamplingOptions(
                guidance=self.guidance,
                temperature=self.temperature,
                choice_temperature=self.choice_temperature,
                schedule_power=self.schedule_power,
                denoising_steps=measure.denoising_steps(self.denoising_steps),
                sampler=self.sampler,
            ),
        )

    def _check_kind(self, pipeline: "Pipeline") -> None:
        draws = pipeline.model.spec.draws
        if draws == "class" and (self.prompt or self.prompts or self.negative_prompt):
            raise ValueError(
                f"{pipeline.name} takes classes, not prompts: `swiftmask generate {self.model} 0 1 2`"
            )
        if draws == "prompt" and self.classes:
            raise ValueError(f"{pipeline.name} takes prompts, not classes: leave out --classes")

    def _start(self, pipeline: "Pipeline") -> "StartImage | None":
        """What every image starts from."""
        if self.init_image is None:
            return None
        return jobs.start_of(pipeline, self.init_image, self.mask, self._decoding())

    def _decoding(self) -> "Decoding":
        from swiftmask.data.images import Decoding

        return Decoding(background=self.background)

    def _settings(self, pipeline: "Pipeline", start: "StartImage | None") -> dict[str, Any]:
        """All that decides an image besides its class or prompt and its seed."""
        from swiftmask.stamps import stamped_settings

        schedule = pipeline.schedule(num_masked=None if start is None else start.num_drawn)
        given: dict[str, Any] = {}
        if self.matmul_precision != "highest":
            given["matmul_precision"] = self.matmul_precision
        given |= {"marval": self.marval, "speed_rl": self.speed_rl, "size": list(self.size) or None}
        given |= {
            name: None if path is None else jobs.file_mark(path)
            for name, path in (("init_image", self.init_image), ("mask", self.mask))
        }
        given["decoding"] = None if self.init_image is None else self._decoding().identity
        given["kept_pixels"] = None if self.init_image is None else "pasted"
        return stamped_settings(pipeline, schedule, given)
