"""Does every artifact carry the tokenizer that its model was trained with?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from cofi_deploy.loading import load_tokenizer
from cofi_deploy.serve.fault import Checked, Diagnosis, Texts
from cofi_deploy.serve.subject import Subject
from cofi_deploy.tasks import Example

_MAX_TEXTS = 2000
_SHOWN_TOKENS = 8
_SHOWN_CHARACTERS = 60


def check_tokenizers(subject: Subject, dense: Subject, texts: Texts) -> list[Diagnosis]:
    """Compare tokens of the task's text: of each artifact with the model's, of it with dense.

    Artifacts whose vocabulary was cut number their pieces otherwise, and are passed over; so are
    two models that are not the same one before and after pruning.

    Raises:
        ArtifactError: A tokenizer is not readable.
    """
    examples = texts.encoded[subject.label].examples
    found = []
    own = subject.tokenizer
    if subject is not dense and _is_cut_from(subject, dense):
        home = Checked(subject=subject, runtime=subject.home)
        found += _compare(home, own, (dense.tokenizer, dense.label), examples)
    for runtime, directory in subject.artifacts.items():
        # A Triton repository has its tokenizer in a model of its own, which text is sent through.
        if runtime == "triton" or directory == own or subject.own_tokenizer(runtime) is not None:
            continue
        checked = Checked(subject=subject, runtime=runtime)
        found += _compare(checked, directory, (own, "the model"), examples)
    return found


def _is_cut_from(subject: Subject, dense: Subject) -> bool:
    """Whether the sizes say that one was pruned to the other."""
    small, large = subject.arch(), dense.arch()
    return (small.family, small.dense) == (large.family, large.dense)


def _compare(
    checked: Checked, directory: Path, right: tuple[Path, str], examples: Sequence[Example]
) -> list[Diagnosis]:
    one, other = load_tokenizer(directory), load_tokenizer(right[0])
    if one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str():
        return []
    places = np.unique(np.linspace(0, len(examples) - 1, _MAX_TEXTS).astype(int))
    chosen = [examples[place] for place in places]
    pairs = list(zip(chosen, _ids(one, chosen), _ids(other, chosen), strict=True))
    differing = [each for each in pairs if each[1] != each[2]]
    if not differing:
        return []
    example, got, expected = differing[0]
    return [
        checked.diagnosis(
            "different_tokenizer",
            f"its tokenizer is not that of {right[1]}: it gives other ids for "
            f"{len(differing) / len(pairs):.1%} of {len(pairs)} texts, first for "
            f"{_shortened(example.text)!r}: {_tokens(one, got)} instead of "
            f"{_tokens(other, expected)}; copy the tokenizer of {str(right[0])!r} or "
            f"{checked.remedy()}",
        )
    ]


def _ids(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
    firsts = [each.text for each in examples]
    seconds = [each.text_pair or "" for each in examples]
    pairs = seconds if any(seconds) else None
    encoded = tokenizer(firsts, pairs, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """``good=12 ##s=40 ...``: pieces with their ids, the first few."""
    shown = ids[:_SHOWN_TOKENS]
    pieces = tokenizer.convert_ids_to_tokens(list(shown))
    words = [f"{piece}={number}" for piece, number in zip(pieces, shown, strict=True)]
    return f"[{' '.join([*words, *(['...'] if len(ids) > _SHOWN_TOKENS else [])])}]"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
