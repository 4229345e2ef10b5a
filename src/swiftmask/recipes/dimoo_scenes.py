"""dimoo-scenes: a small text-to-image Lumina-DiMOO on 8x8 tokens: LLaDA over captions and codes in one
vocabulary.

Three stages, each resumable: the codec (that of meissonic-scenes, for smaller pictures), a cache of encoded
pictures with their captions, and the backbone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.settings import read_json
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.initialisation import initialise
from swiftmask.models.lumina_dimoo.layout import Layout, Vocabulary
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.objective import BackboneTrainer, MaskedBatch, train_step
from swiftmask.models.lumina_dimoo.prompts import WordPrompts
from swiftmask.recipes import meissonic_scenes_tokenizer
from swiftmask.recipes.captioned_scenes import CAPTION_LENGTH, WORDS, CaptionedCodes, World
from swiftmask.recipes.meissonic_scenes_tokenizer import TokenizerRecipe
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import SCENES_STEPS, OnLog, fingerprint, require_model, run_name
from swiftmask.recipes.vq_codec_training import codebook_of
from swiftmask.training.loop import train
from swiftmask.training.setup import TrainingConfig, step_seed

_NOTHING = -1
"""Fills captions in the cache up to one length; no id is negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiMOORecipe:
    """Sizes and optimisation of the backbone.

    Attributes:
        world: what the pictures show; the codec's recipe has its own, which may be wider.
        sampling: defaults written into the model's config.
        num_pictures: size of the token cache; the backbone sees each picture several times.
        codec_run: folder of a run of `codec` that is done or under way; empty for one of its own.
        initial: model folder to go on from, with its codec; empty starts anew.
    """

    codec: TokenizerRecipe
    backbone: BackboneConfig
    training: TrainingConfig
    sampling: SamplingOptions
    world: World = World()
    num_pictures: int = 60_000
    codec_run: str = ""
    initial: str = ""
    name: str = "dimoo-scenes"

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train everything, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`.

        Errors: ValueError for a vocabulary that does not fit, a `codec_run` with other settings, or an
        `initial` of other sizes; FileNotFoundError if that is not there.
        """
        self.check_fit()
        codec, backbone = self.start(folder, on_log)
        pictures = self.pictures(codec, folder)
        trained = train(
            BackboneTrainer(backbone, Layout(self.vocabulary, self.grid)),
            lambda *place: self.batch(pictures, *place),
            train_step,
            self.training,
            folder / "backbone",
            name=run_name(self.name, backbone, self.data_name(codec), self.num_pictures),
            on_log=on_log,
        )
        model = LuminaDiMOO(
            trained.backbone,
            codec,
            WordPrompts(WORDS),
            vocabulary=self.vocabulary,
            grid=self.grid,
            sampling=self.sampling,
            steps=SCENES_STEPS,
        )
        facts: dict[str, object] = {"pictures": self.num_pictures, "world": asdict(self.world)}
        if self.initial:
            facts["initial"] = read_json(Path(self.initial) / "provenance.json")
        made_by = provenance(self.name, self.training, **facts, tokenizer=asdict(self.codec.training))
        model.save_pretrained(folder / "model", provenance=made_by, dtype=torch.float16)
        return folder / "model"

    @property
    def vocabulary(self) -> Vocabulary:
        """Words and their specials (prompts.py) first, then the layout's specials, then the codes."""
        first = WordPrompts(WORDS).num_ids
        return Vocabulary(
            mask=first,
            newline=first + 1,
            image_start=first + 2,
            image_end=first + 3,
            answer_start=first + 4,
            answer_end=first + 5,
            first_code=first + 6,
            codebook_size=self.codec.num_codes,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of a picture."""
        side = self.codec.resolution // self.codec.codec.downscale
        return (side, side)

    def check_fit(self) -> None:
        """Before anything is trained. Not when settings change, which they do one at a time.

        Errors: ValueError saying how large the vocabulary must be.
        """
        if self.backbone.vocabulary_size != self.vocabulary.size:
            raise ValueError(
                f"backbone.vocabulary_size must be {self.vocabulary.size} (words, specials and "
                f"codec.num_codes), got {self.backbone.vocabulary_size}"
            )

    def data_name(self, codec: VQCodec) -> str:
        """What a checkpoint is checked against: the codec and the world."""
        return f"{fingerprint(codec)}-{self.world.name}"

    def pictures(self, codec: VQCodec, folder: Path) -> CaptionedCodes:
        """The training pictures, drawn and encoded once."""
        return CaptionedCodes.cached(
            folder / "tokens",
            self.world,
            self.num_pictures,
            self.codec.resolution,
            encode=codec.encode,
            codec=fingerprint(codec),
            tokenize=prompt_ids,
        )

    def start(self, folder: Path, on_log: OnLog | None = None) -> tuple[VQCodec, Backbone]:
        """Codec, and the backbone before it is trained: those of `initial`, or a trained codec and weights
        that are a function of the seed.
        """
        if self.initial:
            return self._read_initial()
        codec = self.codec.run(Path(self.codec_run) if self.codec_run else folder / "tokenizer", on_log)
        torch.manual_seed(self.training.seed)
        backbone = initialise(
            Backbone(self.backbone), codebook_of(codec), first_code=self.vocabulary.first_code
        )
        return codec, backbone

    def _read_initial(self) -> tuple[VQCodec, Backbone]:
        folder = require_model(self.initial, setting="initial", trained_by=self.name)
        model = LuminaDiMOO.from_pretrained(folder)
        if (model.backbone.config, model.spec.grid) != (self.backbone, self.grid):
            raise ValueError(f"the model in {folder} is of other sizes than this recipe's (initial)")
        return model.codec, model.backbone.requires_grad_()

    def batch(self, pictures: CaptionedCodes, step: int, rank: int, num_ranks: int) -> MaskedBatch:
        """The masked batch of one step, a function of the step alone."""
        generator = torch.Generator().manual_seed(step_seed(self.training.seed, step, rank))
        codes_BHW, captions_BT = pictures.draw(self.training.batch_size // num_ranks, generator)
        prompts = [[word for word in row if word != _NOTHING] for row in captions_BT.tolist()]
        return MaskedBatch.draw(codes_BHW.flatten(1), prompts, WordPrompts(WORDS).null_ids, generator)


def prompt_ids(texts: Sequence[str]) -> Tensor:
    """Captions as whole prompts, filled up to one length: int64 [B, T]."""
    words = WordPrompts(WORDS)
    ids_BT = torch.full((len(texts), CAPTION_LENGTH), _NOTHING, dtype=torch.int64)
    for row_T, text in zip(ids_BT, texts, strict=True):
        ids = words.ids(text)
        row_T[: len(ids)] = torch.tensor(ids)
    return ids_BT


def recipe() -> DiMOORecipe:
    """`swiftmask train dimoo-scenes`: codec, tokens and backbone in two and a half hours on one CPU core.

    Captions are those of one to three objects on a plain background (`world.simple_percent=0` is the whole of
    Scenes). Rotations are quicker than the released model's: their slowest takes a few sequences to turn, not
    thousands. The bundled weights went on from those on more pictures (`initial`). What was tried is in
    docs/log.md, measured quality in docs/lumina_dimoo.md.
    """
    codec = replace(meissonic_scenes_tokenizer.recipe(), resolution=32)
    backbone = BackboneConfig(
        width=192,
        depth=5,
        num_heads=6,
        mlp_width=512,
        vocabulary_size=WordPrompts(WORDS).num_ids + 6 + codec.num_codes,
        rope_theta=1000.0,
    )
    training = TrainingConfig(
        num_steps=7200,
        batch_size=64,
        learning_rate=3e-3,
        muon_learning_rate=6e-3,
        warmup_steps=100,
        precision="bf16-weights",
        save_every=100,
    )
    sampling = SamplingOptions(guidance=1.5, temperature=0.7, choice_temperature=0.5)
    return DiMOORecipe(codec=codec, backbone=backbone, training=training, sampling=sampling)
