"""Data sets by name from the Hugging Face hub, always of one commit."""

import re
from collections.abc import Iterable

from antisd_jax.errors import UserError

# short name: (data set, subset, split)
SETS = {
    "dapo_math_17k": ("BytedTsinghua-SIA/DAPO-Math-17k", "", "train"),
    "gsm8k_train": ("openai/gsm8k", "main", "train"),
    "math_train": ("DigitalLearningGmbH/MATH-lighteval", "", "train"),
    "aime2024": ("HuggingFaceH4/aime_2024", "", "train"),
    "aime2025": ("MathArena/aime_2025", "", "train"),
    "aime2026": ("MathArena/aime_2026", "", "train"),
    "hmmt_feb_2025": ("MathArena/hmmt_feb_2025", "", "train"),
    "minerva_math": ("math-ai/minervamath", "", "test"),
    "math500": ("HuggingFaceH4/MATH-500", "", "test"),
    "gsm8k_test": ("openai/gsm8k", "main", "test"),
    "beyondaime": ("ByteDance-Seed/BeyondAIME", "", "test"),
    "humaneval_plus": ("evalplus/humanevalplus", "", "test"),
    "mbpp_plus": ("evalplus/mbppplus", "", "test"),
}


def knows(path: str) -> bool:
    """True for what may be a name on the hub rather than a file."""
    return path in SETS or (re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not path.startswith(".") and not path.endswith(".jsonl"))


def fetch(path: str, subset: str, split: str, revision: str, key: str) -> tuple[Iterable[dict], str]:
    """(rows, commit) of a data set; a branch such as main is resolved to the commit that it points to now.

    Raises UserError naming `key` when the hub has no such thing, or cannot be reached and nothing is cached.
    """
    import datasets
    from huggingface_hub import HfApi

    name, its_subset, its_split = SETS.get(path, (path, "", ""))
    subset, split = subset or its_subset, split or its_split
    datasets.disable_progress_bars()
    try:
        commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else HfApi().dataset_info(name, revision=revision).sha
        found = datasets.load_dataset(name, subset or None, split=split or None, revision=commit)
    except Exception as e:  # network, authorisation, names, formats: whatever the libraries raise, the user can mend
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"{key}: no such file, and not to be had as {name} at {revision!r} from the hub: {reason[:300]}") from None
    if isinstance(found, dict):
        if len(found) != 1:
            raise UserError(f"{key}: {name} has the splits {', '.join(found)}; name one (data.split; in eval.data: {name}:SPLIT)")
        (found,) = found.values()
    batches = found.with_format("arrow").iter(10_000)
    return (row for batch in batches for row in batch.to_pylist()), commit
