"""meissonic-scenes: a small text-to-image Meissonic on 12x12 tokens, with its tokenizer and text encoder.

Three stages, each resumable: the tokenizer (its own recipe), a cache of tokenized pictures with their
captions, and the transformer. The text encoder, CLIP's architecture with a list of words for a vocabulary, is
trained together with the transformer, by the same loss: the grammar of captions is small, and pairing texts
with pictures first (as CLIP) would need a picture encoder that nothing else uses.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.meissonic import Meissonic, Prompt
from swiftmask.models.meissonic.initialisation import ignore_micro_conditions, initialise
from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.objective import MaskedBatch, TransformerTrainer, train_step
from swiftmask.models.meissonic.text import (
    TextConfig,
    TextEncoder,
    Tokenizer,
    build_text_encoder,
    word_tokenizer,
)
from swiftmask.recipes import meissonic_scenes_tokenizer
from swiftmask.recipes.captioned_scenes import CAPTION_LENGTH, WORDS, CaptionedCodes, World
from swiftmask.recipes.meissonic_scenes_tokenizer import TokenizerRecipe
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import SCENES_STEPS, fingerprint, run_name
from swiftmask.recipes.vq_codec_training import codebook_of
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig, step_seed

_NUM_SPECIAL = 3
"""Ids of a word tokenizer that stand for no word: end, start and unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeissonicRecipe:
    """Sizes and optimisation of transformer and text encoder.

    Attributes:
        world: what the pictures show; the tokenizer has its own, which may be wider.
        sampling: defaults written into the model's config.
        max_steps: of the longest decode the model is to know.
        num_pictures: size of the token cache; the transformer sees each picture several times.
    """

    tokenizer: TokenizerRecipe
    text: TextConfig
    transformer: TransformerConfig
    training: TrainingConfig
    sampling: SamplingOptions
    world: World = World()
    max_steps: int = 32
    num_pictures: int = 60_000
    name: str = "meissonic-scenes"

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> Path:
        """Train everything, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`.

        Errors: ValueError for sizes that do not fit each other.
        """
        self.check_fit()
        codec = self.tokenizer.run(folder / "tokenizer", on_log)
        words = word_tokenizer(WORDS, length=self.text.max_position_embeddings)
        pictures, null_T = self.pictures(codec, words, folder), words([""])[0]
        trainer = TransformerTrainer(*self.start(codec, words))
        trained = train(
            trainer,
            lambda *place: self.batch(pictures, null_T, *place),
            train_step,
            self.training,
            folder / "transformer",
            name=run_name(self.name, trainer, self.data_name(codec), self.num_pictures, self.max_steps),
            on_log=on_log,
        )
        model = Meissonic(
            trained.transformer,
            trained.text_encoder,
            codec,
            size=self.size,
            sampling=self.sampling,
            steps=SCENES_STEPS,
        )
        facts = {"pictures": self.num_pictures, "world": asdict(self.world)}
        tokenizer = asdict(self.tokenizer.training)
        made_by = provenance(self.name, self.training, **facts, tokenizer=tokenizer)
        model.save_pretrained(folder / "model", provenance=made_by, dtype=torch.float16)
        return folder / "model"

    def check_fit(self) -> None:
        """Before anything is trained. Not when settings change, which they do one at a time.

        Errors: ValueError naming two sizes that must be equal.
        """
        alike = {
            "transformer.codebook_size and tokenizer.num_codes": (
                self.transformer.codebook_size,
                self.tokenizer.num_codes,
            ),
            "transformer.text_width and text.hidden_size": (
                self.transformer.text_width,
                self.text.hidden_size,
            ),
            "the transformer's width (num_heads x head_width) and text.projection_dim": (
                self.transformer.width,
                self.text.projection_dim,
            ),
        }
        for what, (first, second) in alike.items():
            if first != second:
                raise ValueError(f"{what} must be equal, got {first} and {second}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return (self.tokenizer.resolution, self.tokenizer.resolution)

    def data_name(self, codec: VQCodec) -> str:
        """What a checkpoint is checked against: the codec and the world."""
        return f"{fingerprint(codec)}-{self.world.name}"

    def pictures(self, codec: VQCodec, words: Tokenizer, folder: Path) -> CaptionedCodes:
        """The training pictures, drawn and tokenized once."""
        return CaptionedCodes.cached(
            folder / "tokens",
            self.world,
            self.num_pictures,
            self.tokenizer.resolution,
            encode=codec.encode,
            codec=fingerprint(codec),
            tokenize=words,
        )

    def start(self, codec: VQCodec, words: Tokenizer) -> tuple[Transformer, TextEncoder]:
        """Transformer and text encoder before training, a function of the seed."""
        torch.manual_seed(self.training.seed)
        transformer = initialise(Transformer(self.transformer), codebook_of(codec))
        return ignore_micro_conditions(transformer), build_text_encoder(self.text, words)

    def batch(
        self, pictures: CaptionedCodes, null_T: Tensor, step: int, rank: int, num_ranks: int
    ) -> MaskedBatch:
        """The masked batch of one step, a function of the step alone.

        Args:
            null_T: ids of the empty prompt.
        """
        generator = torch.Generator().manual_seed(step_seed(self.training.seed, step, rank))
        codes_BHW, captions_BT = pictures.draw(self.training.batch_size // num_ranks, generator)
        micro_5 = torch.tensor(Prompt("any picture").micro(self.size))
        return MaskedBatch.draw(
            codes_BHW,
            captions_BT,
            micro_5.expand(len(codes_BHW), -1),
            generator,
            mask_id=self.transformer.mask_id,
            null_T=null_T,
            max_steps=self.max_steps,
        )


def recipe() -> MeissonicRecipe:
    """`swiftmask train meissonic-scenes`: tokenizer, tokens and transformer on two CPU cores.

    100 minutes on one of them. Captions are those of one to three objects on a plain background
    (`world.simple_percent=0` is the whole of Scenes); blocks run on 6x6 tokens. What was tried is in
    docs/log.md, measured quality in docs/speed_rl.md.
    """
    tokenizer = meissonic_scenes_tokenizer.recipe()
    text = TextConfig(
        vocab_size=len(WORDS) + _NUM_SPECIAL,
        hidden_size=64,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=CAPTION_LENGTH,
        eos_token_id=0,
    )
    transformer = TransformerConfig(
        num_heads=4,
        head_width=32,
        num_double_blocks=2,
        num_single_blocks=4,
        text_width=text.hidden_size,
        codebook_size=tokenizer.num_codes,
        vocabulary_size=tokenizer.num_codes + 1,
        rotary_axes=(4, 14, 14),
        downsample=True,
    )
    training = TrainingConfig(
        num_steps=6000,
        batch_size=64,
        learning_rate=3e-3,
        muon_learning_rate=6e-3,
        warmup_steps=100,
        precision="bf16-weights",
        save_every=100,
    )
    sampling = SamplingOptions(guidance=1.5, temperature=0.9, choice_temperature=0.5)
    return MeissonicRecipe(
        tokenizer=tokenizer, text=text, transformer=transformer, training=training, sampling=sampling
    )
