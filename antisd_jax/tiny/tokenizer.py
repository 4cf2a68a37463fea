"""Tokenizers and chat templates for small Qwen3 folders, in Hugging Face format."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from antisd_jax.text.prompt import PromptConfig
from antisd_jax.tiny.countdown import LIMIT

TURN, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
WORDING = PromptConfig(elision="…")
# Whole phrases are single tokens, so that the tiny model spends its positions on the search.
PHRASES = (
    ["Use ", ", ", " to make ", ".", "\n\n", "\n", " ", "…", "user\n", "assistant\n"]
    + [WORDING.instruction, WORDING.request, WORDING.attempt + "\n", WORDING.assessment + "\n"]
    + ["Your answer is correct.", "Your answer is incorrect.", "Let me try ", "\nWait, ", "\nSo ", " yes", " no", "out"]
    + ["\\boxed{(", "\\boxed{", "(", ")", "}", "+", "-", "*", "="]
)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
)
EMPTY_THOUGHT = "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
TEMPLATES = {
    "plain": TEMPLATE + "{% endif %}",
    "hybrid": TEMPLATE + EMPTY_THOUGHT + "{% endif %}",  # as Qwen3-8B: without thinking, an empty thought is part of the prompt
    "think": TEMPLATE + "{{ '<think>' }}{% endif %}",  # as Olmo-3-7B-Think: every response begins inside a thought
}


def countdown_tokenizer() -> Tokenizer:
    """A closed vocabulary: the numbers 0 … LIMIT and the phrases of the task. Decoding is concatenation, hence exact."""
    words = [PAD, TURN, END, "<unk>"] + [str(n) for n in range(LIMIT + 1)] + PHRASES
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|\D"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (PAD, TURN, END)])
    tokenizer.add_tokens([AddedToken(p, normalized=False) for p in PHRASES])
    return tokenizer


def trained_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE trained on the given texts, with Qwen's turn and thought marks as single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, TURN, END]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])  # visible text, as in Qwen3
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, template: str = "plain") -> None:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json; the end of a turn ends a response."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATES[template])
    ends = {"eos_token_id": [tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)], "pad_token_id": tokenizer.token_to_id(PAD)}
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n")
