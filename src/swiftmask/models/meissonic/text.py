"""Prompts to embeddings: the text half of CLIP (Radford et al., arXiv 2103.00020) and its tokenizer.

Both are those of transformers, imported when one is built. The released models use CLIP ViT-H; a small one
brings its own encoder of a few layers with a word-level tokenizer (`word_tokenizer`), in the same folder
layout. The transformer reads the states before the encoder's last layer (no final norm) and the projected
state of the end token, and attends to padding, which therefore belongs to what a model was trained with.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from swiftmask.core.optional import library
from swiftmask.core.ranges import check_fields
from swiftmask.core.settings import first_line

_START, _END, _UNKNOWN = "<start>", "<end>", "<unknown>"
_CHECKED_TOGETHER = 1000
_ENCODER, _TOKENIZER = "the text encoder of Meissonic", "the tokenizer of Meissonic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Sizes of the text encoder, under their upstream names.

    Attributes:
        max_position_embeddings: tokens every prompt is padded to; a longer one is refused.
        eos_token_id: whose state is pooled; the legacy value 2 means the largest id of each prompt.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    projection_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 77
    hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads} heads"
            )
        if self.eos_token_id >= self.vocab_size:
            raise ValueError(f"eos_token_id must be below {self.vocab_size}, got {self.eos_token_id}")


class TextEmbedding(NamedTuple):
    """Embedded texts, one row each.

    Attributes:
        states_XTC: hidden states before the encoder's last layer.
        pooled_XD: projected state of the end token.
    """

    states_XTC: Tensor
    pooled_XD: Tensor

    def rows(self, index_Y: Tensor) -> "TextEmbedding":
        """The embeddings of some of the texts, in any order and number."""
        return TextEmbedding(self.states_XTC[index_Y], self.pooled_XD[index_Y])


class Tokenizer:
    """Texts to rows of ids of one length.

    Args:
        backend: a tokenizer of transformers that pads to the right.
        length: ids in a row, padding included.
    """

    def __init__(self, backend: Any, length: int) -> None:
        self._backend = backend
        self.length = length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [X, T] (int64, on the CPU).

        Errors: ValueError naming the first text that is too long or has a word outside a list of words.
        """
        encoded = self._backend(list(texts), padding="max_length", max_length=self.length)["input_ids"]
        for text, ids in zip(texts, encoded, strict=True):
            self._check(text, ids)
        return torch.tensor(encoded, dtype=torch.int64)

    def truncated(self, text: str) -> str:
        """The longest beginning of a text that fits, cut between two tokens; the text itself if it fits."""
        encoded = self._backend(text, return_offsets_mapping=True)
        if len(encoded["input_ids"]) <= self.length:
            return text
        ends = [end for _, end in encoded["offset_mapping"][: self.length - 1]]  # the end token needs a place
        return text[: max(ends)].rstrip()

    @property
    def num_ids(self) -> int:
        """Size of the vocabulary."""
        return len(self._backend)

    @property
    def has_words(self) -> bool:
        """Whether the vocabulary is a list of words (`words_of`), not CLIP's."""
        return type(self._backend.backend_tokenizer.model).__name__ == "WordLevel"

    def check(self, texts: Sequence[str], *, truncate: bool) -> None:
        """Before a training on texts.

        Args:
            truncate: whether those that are too long will be cut.

        Errors: ValueError saying how many are too long, or naming the first unknown word.
        """
        different = list(dict.fromkeys(texts))
        short = [self.truncated(text) for text in different]
        long = [text for text, cut in zip(different, short, strict=True) if text != cut]
        if long and not truncate:
            raise ValueError(
                f"{len(long)} of {len(different)} captions have more than {self.length} tokens, such as "
                f"{long[0][:60]!r}: shorten them, or have them cut (objective.truncate=true)"
            )
        for start in range(0, len(short), _CHECKED_TOGETHER):
            self(short[start : start + _CHECKED_TOGETHER])

    def _check(self, text: str, ids: Sequence[int]) -> None:
        if len(ids) > self.length:
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise ValueError(
                f"prompt of {len(ids)} tokens, expected at most {self.length} (start and end among them): "
                f"shorten {shown!r}, or cut it (--truncate)"
            )
        unknown = self._backend.unk_token_id
        if unknown in ids and unknown != self._backend.eos_token_id:  # in CLIP's own they are one
            spans = self._backend(text, return_offsets_mapping=True)["offset_mapping"]
            start, end = spans[list(ids).index(unknown)]
            raise ValueError(f"unknown word {text[start:end]!r} in {text!r}: this model has a list of words")

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: it never changes, and copying a vocabulary takes longer than counting operations."""
        return self

    def save(self, folder: str | Path) -> None:
        """Write the files `read_tokenizer` reads."""
        self._backend.backend_tokenizer.no_padding()  # that of the last call would be written too
        self._backend.save_pretrained(folder)


class TextEncoder(nn.Module):
    """CLIP's text encoder with its tokenizer.

    Args:
        clip: transformers' `CLIPTextModelWithProjection` of these sizes (`build_text_encoder`).
    """

    def __init__(self, config: TextConfig, clip: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.clip: Any = clip
        self.tokenizer = tokenizer

    def forward(self, ids_XT: Tensor) -> TextEmbedding:
        """The embedding of rows of ids."""
        output = self.clip(input_ids=ids_XT, output_hidden_states=True)
        return TextEmbedding(output.hidden_states[-2], output.text_embeds)


def build_text_encoder(config: TextConfig, tokenizer: Tokenizer) -> TextEncoder:
    """An encoder of these sizes with random weights. Errors: ValueError if transformers is not installed."""
    transformers = library("transformers", _ENCODER)
    # The ids of start and padding are the tokenizer's business; left alone, they would be CLIP's own.
    sizes = transformers.CLIPTextConfig(**asdict(config), bos_token_id=None, pad_token_id=None)
    clip = transformers.CLIPTextModelWithProjection(sizes)
    return TextEncoder(config, clip.eval(), tokenizer)


def read_tokenizer(folder: str | Path, *, length: int) -> Tokenizer:
    """Errors: FileNotFoundError without vocabulary (transformers makes one up); ValueError if damaged."""
    folder = Path(folder)
    complete = (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
    if not complete:
        raise FileNotFoundError(
            f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json and merges.txt"
        )
    transformers = library("transformers", _TOKENIZER)
    try:
        backend = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ValueError(
            f"the tokenizer in {folder} is damaged ({type(error).__name__}: {first_line(error)}): "
            "copy it again from where the model came from"
        ) from error
    for trace in ("is_local", "local_files_only"):  # of this reading, else written with the next copy
        backend.init_kwargs.pop(trace, None)
    return Tokenizer(backend, length)


def word_tokenizer(words: Sequence[str], *, length: int) -> Tokenizer:
    """A tokenizer whose vocabulary is these words, lower case and split at spaces and punctuation.

    Ids: padding and end 0, start 1, unknown 2, then the words in their order; its encoder's `eos_token_id` is
    0.
    """
    transformers = library("transformers", _TOKENIZER)
    tokenizers = library("tokenizers", _TOKENIZER)
    lower, split = _word_rules()
    vocabulary = {word: place for place, word in enumerate((_END, _START, _UNKNOWN, *words))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.normalizer, backend.pre_tokenizer = lower, split
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=[(_START, 1), (_END, 0)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=length,
    )
    return Tokenizer(fast, length)


def words_of(texts: Sequence[str]) -> Tokenizer:
    """A `word_tokenizer` of all words in some texts, as long as the longest of them."""
    lower, split = _word_rules()
    words: set[str] = set()
    longest = 0
    for text in dict.fromkeys(texts):
        found = [word for word, _ in split.pre_tokenize_str(lower.normalize_str(text))]
        words.update(found)
        longest = max(longest, len(found))
    return word_tokenizer(sorted(words), length=longest + 2)


def _word_rules() -> tuple[Any, Any]:
    """What makes a text lower case, and what splits it at spaces and punctuation."""
    tokenizers = library("tokenizers", _TOKENIZER)
    return tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Whitespace()
