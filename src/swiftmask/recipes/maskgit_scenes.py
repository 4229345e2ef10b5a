"""maskgit-scenes: a small class-conditional MaskGIT on 12x12 tokens, with its tokenizer.

Three stages, each resumable: the tokenizer (its own recipe), a cache of tokenized pictures, the transformer.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.data.scenes import CLASS_NAMES, NUM_CLASSES, class_attributes
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN
from swiftmask.models.maskgit.initialisation import initialise
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.models.maskgit.objective import MaskedBatch, TransformerTrainer, train_step
from swiftmask.recipes import maskgit_scenes_tokenizer
from swiftmask.recipes.maskgit_scenes_tokenizer import TokenizerRecipe
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import SCENES_STEPS, fingerprint, run_name
from swiftmask.recipes.scenes_pictures import encoded_pictures
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig, step_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskGITRecipe:
    """Sizes and optimisation of the transformer.

    Attributes:
        num_pictures: size of the token cache; the transformer sees each picture several times.
        sampling: defaults written into the model's config.
    """

    tokenizer: TokenizerRecipe
    transformer: TransformerConfig
    training: TrainingConfig
    sampling: SamplingOptions
    num_pictures: int = 60_000
    name: str = field(default="maskgit-scenes")

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> Path:
        """Train everything, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`."""
        codec = self.tokenizer.run(folder / "tokenizer", on_log)
        codes_XL, labels_X = self.tokens(codec, folder / "tokens")
        torch.manual_seed(self.training.seed)
        attributes_NA = class_attributes(torch.arange(NUM_CLASSES))
        transformer = initialise(
            Transformer(self.transformer), codec.quantize.embedding.weight, attributes_NA
        )
        trained = train(
            TransformerTrainer(transformer),
            lambda step, rank, num_ranks: self.batch(codes_XL, labels_X, step, rank, num_ranks),
            train_step,
            self.training,
            folder / "transformer",
            name=run_name(self.name, transformer, fingerprint(codec), self.num_pictures),
            on_log=on_log,
        )
        model = MaskGIT(
            trained.transformer.eval(),
            codec,
            sampling=self.sampling,
            steps=SCENES_STEPS,
            class_names=CLASS_NAMES,
        )
        tokenizer = asdict(self.tokenizer.training)
        facts = provenance(self.name, self.training, pictures=self.num_pictures, tokenizer=tokenizer)
        model.save_pretrained(folder / "model", provenance=facts, dtype=torch.float16)
        return folder / "model"

    def tokens(self, codec: VQGAN, folder: Path) -> tuple[Tensor, Tensor]:
        """Codes [num_pictures, L] (int16) and labels, drawn and tokenized once."""

        def encode(images_B3HW: Tensor) -> Tensor:
            return codec.encode(images_B3HW).flatten(1).to(torch.int16)

        return encoded_pictures(
            folder, self.num_pictures, codec.config.resolution, encode, made_by=("codes", fingerprint(codec))
        )

    def batch(self, codes_XL: Tensor, labels_X: Tensor, step: int, rank: int, num_ranks: int) -> MaskedBatch:
        """The masked batch of one step, a function of the step alone."""
        generator = torch.Generator().manual_seed(step_seed(self.training.seed, step, rank))
        picked_B = torch.randint(len(codes_XL), (self.training.batch_size // num_ranks,), generator=generator)
        return MaskedBatch.draw(codes_XL[picked_B].long(), labels_X[picked_B], self.transformer, generator)


def recipe() -> MaskGITRecipe:
    """`swiftmask train maskgit-scenes`: 75 minutes on two CPU cores (13 for the tokenizer, 57 for the
    transformer beside other work; 2026-11-21). Measured quality in benchmarks/results.

    The bundled weights' tokenizer was trained before class pictures got plain backgrounds, on the same
    recipe (provenance.json).
    """
    tokenizer = maskgit_scenes_tokenizer.recipe()
    transformer = TransformerConfig(
        width=160,
        depth=8,
        num_heads=5,
        mlp_width=640,
        codebook_size=tokenizer.num_codes,
        num_classes=NUM_CLASSES,
        grid=tokenizer.codec.grid,
    )
    training = TrainingConfig(
        num_steps=3300,
        batch_size=64,
        learning_rate=3e-3,
        muon_learning_rate=6e-3,
        warmup_steps=100,
        precision="bf16-weights",
        save_every=100,
    )
    sampling = SamplingOptions(guidance=2.0, temperature=1.0, choice_temperature=10.0)
    return MaskGITRecipe(tokenizer=tokenizer, transformer=transformer, training=training, sampling=sampling)
