"""Compares tokenizers with OpenCLIP's on 10,000 strings, and writes the golden files of their tests.

    python tests/parity/tokenizer_live.py --worker ringmaster-worker      compares
    python tests/parity/tokenizer_live.py --golden tests/parity/golden    writes small files

The strings are drawn from a seed: words of many scripts, emoji, HTML entities, mojibake, control
characters, very long and empty ones. SigLIP's own vocabularies are not to be had everywhere, so
SentencePiece models like theirs (unigram, NFKC, padding 0, end 1, unknown 2) are trained here: read as
they are, and as the tokenizer.json that OpenCLIP's SigLipTokenizer makes of them; both have to give what
its HFTokenizer gives. WordPiece and BPE files are made likewise.
"""

import argparse
import io
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import sentencepiece
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from tokenizers.pre_tokenizers import Metaspace
from tokenizer_golden import EDGES, PLAIN, SCRIPTS, STYLES, WORDS

COUNT = 10_000
ENTITIES = "&amp; &lt; &gt; &quot; &#39; &#x1F600; &eacute; &nbsp; &copy; &amp;amp; &notanentity; &".split()
RANGES = [
    (0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x45F), (0x5D0, 0x5EA), (0x620, 0x64A),
    (0x900, 0x939), (0xE01, 0xE3A), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x4FFF),
    (0xAC00, 0xACFF), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF),
    (0x300, 0x36F), (0x1D400, 0x1D4FF), (0xFF01, 0xFF5E), (0x2000, 0x206F),
]


def mojibake(text: str, rng: random.Random) -> str:
    """What becomes of UTF-8 that is read as a Western encoding."""
    wrong = rng.choice(["latin-1", "cp1252", "cp1251", "cp1250", "cp437", "macroman"])
    return text.encode("utf-8").decode(wrong, errors="replace")


def random_words(rng: random.Random) -> str:
    words = []
    for _ in range(rng.randint(1, 8)):
        low, high = rng.choice(RANGES)
        length = rng.randint(1, 9)
        words.append("".join(chr(rng.randint(low, high)) for _ in range(length)))
    return " ".join(words)


def sentence(rng: random.Random) -> str:
    words = [rng.choice(WORDS + ["a", "the", "of", "in", "red", "photo", "it's", "don't"]) for _ in range(12)]
    joined = rng.choice([" ", ", ", "-", "  ", "\t", " & "]).join(words[: rng.randint(1, 12)])
    return rng.choice([str, str.upper, str.title])(joined) + rng.choice(["", ".", "!", "?!", " 123", " 😀"])


def strings(count: int) -> list:
    rng = random.Random(0)
    base = PLAIN + SCRIPTS + EDGES + [style.format(word) for word in WORDS for style in STYLES]
    texts = list(base[:count])
    while len(texts) < count:
        kind = rng.random()
        if kind < 0.35:
            text = sentence(rng)
        elif kind < 0.65:
            text = random_words(rng)
        elif kind < 0.8:
            text = f"{rng.choice(base)} {rng.choice(ENTITIES)} {rng.choice(base)}"
        elif kind < 0.85:
            low = rng.choice([(0, 0x7F), (0x80, 0x2FF)])
            text = "".join(chr(rng.randint(*low)) for _ in range(rng.randint(1, 40)))
        elif kind < 0.9:
            text = " ".join(sentence(rng) for _ in range(40))
        elif kind < 0.95:
            text = mojibake(rng.choice(SCRIPTS + ["it’s “fine” – really…", "café €5"]), rng)
        else:
            text = rng.choice(base) + rng.choice(SCRIPTS)
        texts.append(text)
    return texts


def corpus() -> list:
    """What vocabularies are trained on: words, not noise."""
    rng = random.Random(1)
    return [sentence(rng) for _ in range(2_000)] + (PLAIN + SCRIPTS) * 3


def train_sentencepiece(folder: pathlib.Path, name: str, size: int) -> pathlib.Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text for text in corpus() if text.strip()),
        model_writer=model, model_type="unigram", vocab_size=size, pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, normalization_rule_name="nmt_nfkc", character_coverage=0.99, hard_vocab_limit=False,
        minloglevel=2, num_threads=1,
    )
    path = folder / name / "spiece.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path


def make_hugging_face(folder: pathlib.Path, kind: str, size: int) -> pathlib.Path:
    """A WordPiece file like BERT's, or a byte-level BPE file like RoBERTa's."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    if kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    tokenizer.train_from_iterator(corpus(), trainer)
    cls, sep, pad = ("[CLS]", "[SEP]", "[PAD]") if kind == "wordpiece" else ("<s>", "</s>", "<pad>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    path = folder / kind
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"), pretty=False)
    config = dict(tokenizer_class="PreTrainedTokenizerFast", pad_token=pad, sep_token=sep, cls_token=cls)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def siglip_json(folder: pathlib.Path, model: pathlib.Path) -> pathlib.Path:
    """The folder a hub repository of a SigLIP model has, with the blank before the first word that
    those have, whatever this version of transformers makes of the model."""
    tokenizer = SigLipTokenizer(str(model), 24)
    tokenizer.tokenizer.backend_tokenizer.pre_tokenizer = Metaspace(prepend_scheme="first")
    tokenizer.save_pretrained(str(folder))
    for name in ("spiece.model", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


def tokenizers_of(folder: pathlib.Path, sizes: tuple) -> list:
    """(name, path, context length, cleaning, strip separators, OpenCLIP's tokenizer)"""
    siglip = train_sentencepiece(folder, "siglip", sizes[0])
    document = siglip_json(folder / "siglip-json", siglip)
    hub = lambda path: HFTokenizer(str(path), 24, clean="canonicalize")
    wordpiece = make_hugging_face(folder, "wordpiece", sizes[1])
    bpe = make_hugging_face(folder, "bpe", sizes[1])
    return [
        ("siglip", siglip, 24, "canonicalize", False, hub(document)),
        ("siglip-json", document, 24, "canonicalize", False, hub(document)),
        ("wordpiece", wordpiece, 20, "whitespace", True,
         HFTokenizer(str(wordpiece), 20, strip_sep_token=True)),
        ("bpe", bpe, 20, "lower", False, HFTokenizer(str(bpe), 20, clean="lower")),
    ]


def ask_worker(worker: str, texts: list, tokenizer: str, length: int, clean: str, strip: bool) -> list:
    command = [worker, "model", "tokenize", "--tokenizer", tokenizer, "--clean", clean]
    command += ["--context-length", str(length)] + (["--strip-sep-token"] if strip else [])
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    output = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def compare(worker: str) -> bool:
    passed = True
    with tempfile.TemporaryDirectory() as place:
        texts = strings(COUNT)
        cases = [("clip", "clip", 77, "lower", False, SimpleTokenizer())]
        cases += tokenizers_of(pathlib.Path(place), (1_200, 1_500))
        for name, path, length, clean, strip, theirs in cases:
            expected = theirs(texts, context_length=length).tolist()
            got = ask_worker(worker, texts, str(path), length, clean, strip)
            wrong = [index for index in range(len(texts)) if got[index] != expected[index]]
            print(json.dumps(dict(tokenizer=name, strings=len(texts), different=len(wrong))), flush=True)
            for index in wrong[:4]:
                print(f"  {texts[index]!r}\n    here  {got[index]}\n    there {expected[index]}", file=sys.stderr)
            passed &= not wrong
    return passed


def write_golden(folder: pathlib.Path) -> None:
    texts = [text for text in strings(700) if len(text) < 200][::2]
    place = folder / "tokenizers"
    table = {"texts": texts, "tokenizers": {}}
    for name, path, length, clean, strip, theirs in tokenizers_of(place, (400, 500)):
        ids = theirs(texts, context_length=length).tolist()
        table["tokenizers"][name] = dict(
            context_length=length, clean=clean, strip_sep_token=strip, ids=ids
        )
    (place / "ids.json").write_text(json.dumps(table, separators=(",", ":")) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker")
    parser.add_argument("--golden", type=pathlib.Path)
    options = parser.parse_args()
    if options.golden:
        write_golden(options.golden)
    return 0 if not options.worker or compare(options.worker) else 1


if __name__ == "__main__":
    sys.exit(main())
