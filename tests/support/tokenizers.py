"""Small tokenizers of each kind that there is."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "he said hi to her, then he left",
    "😀",
    "the hello of the hi-fi",
    "some words in 日本語 and the hé of été",
] * 3


def byte_level(
    *, nfkc: bool = False, prefix_space: bool = False, regex: str | None = None, behavior: str = "isolated"
) -> Tokenizer:
    """GPT-2's kind. regex: as Llama 3's and GPT-4's, which split by a pattern of their own."""
    tokenizer = Tokenizer(models.BPE())
    if nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    own = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=regex is None)
    if regex is None:
        tokenizer.pre_tokenizer = own
    else:
        split = pre_tokenizers.Split(Regex(regex), behavior=behavior)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, own])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback(kind: str) -> Tokenizer:
    """SentencePiece's kind: "llama" puts a space before a text and takes it away again, "gemma" does not."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in (*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"hielo", "he", "▁h", "▁he"):
        vocabulary[token] = len(vocabulary)
    merges = [("h", "e"), ("▁", "h"), ("▁", "he")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram with SentencePiece's spaces, as T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words() -> Tokenizer:
    """Words of ASCII letters, without a decoder for bytes."""
    vocabulary = {word: place for place, word in enumerate(("[UNK]", "he", "said", "hi", "there"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
