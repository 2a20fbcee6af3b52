"""Writes the golden list of the CLIP tokenizer's test: strings and the ids open_clip gives them.

Needs open-clip-torch==3.3.0's `open_clip/tokenizer.py` and its BPE file, `ftfy`, `regex`, `numpy`
and `torch` importable:

    python tests/parity/tokenizer_golden.py path/to/open_clip/tokenizer.py \
        > crates/inputs/src/text/golden.json

The strings are this project's own. Each entry is {"text": ..., "ids": [...]}, ids for a context of
24 tokens without the zeros that fill it up.
"""

import importlib.util
import json
import sys

CONTEXT_LENGTH = 24

PLAIN = """
a photo of a cat
a diagram
grinning face
face with tears of joy
smiling face with smiling eyes, blush, happy
Woman Astronaut: Medium-Dark Skin Tone
flag: Côte d'Ivoire
flag: São Tomé & Príncipe
keycap: 10
keycap: #
keycap: *
Japanese "here" button
Japanese “bargain” button
woman’s hat
men's room, ladies' room
rock'n'roll
don't, can't, won't, we're, I've, I'm, she'll, he'd
DON'T SHOUT, WE'RE HERE
it's Sarah's 21st birthday
t-rex and sauropod
1st place medal
2024 was 100% better than 1999
3.14159 is pi
a 4x4 car
E=mc^2
C++ and C# and F#
user@example.com
https://example.com/a/b?c=d&e=f#g
#hashtag @mention
hello_world snake_case camelCase
multiple     spaces	and	tabs
  leading and trailing  
antidisestablishmentarianism
pneumonoultramicroscopicsilicovolcanoconiosis
supercalifragilisticexpialidocious
aaaaaaaaaaaaaaaaaaaaaaaa
abababababababab
xyzzy plugh qwrtpsdfg
the quick brown fox jumps over the lazy dog
THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG
an emoji of a red heart
a
I
0
!
?!?!
...
--
-_-
:) ;-) :'(
<3
<start_of_text>
a <end_of_text> b
<|startoftext|>
&amp; &lt; &gt; &quot; &#39;
&amp;amp; &amp;lt;b&amp;gt;
Tom &amp; Jerry
fish &#38; chips
caf&eacute; au lait
50 &euro;
10&deg;C
non&nbsp;breaking
x &times; y
&#x1F600; smile
AT&T
R&D; department
""".strip("\n").split("\n")

SCRIPTS = [
    "café", "naïve façade", "Ångström", "über Straße", "smørrebrød", "žluťoučký kůň", "Łódź", "İstanbul",
    "ΑΒΓ αβγ ΣΟΦΟΣ", "Привет, мир", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "你好，世界", "東京タワー", "こんにちは世界", "한국어 문장", "Tiếng Việt", "Ελληνικά 123", "½ ¼ ² ³ ①",
    "Ⅷ Ⅻ", "٣٤٥", "ﬁne ﬂow oﬃce", "ＦＵＬＬ ｗｉｄｔｈ", "ʻokina", "´acute` grave", "“curly” ‘quotes’",
    "„low“ «guillemets»", "em—dash en–dash", "ellipsis…", "bullet • point", "→ ← ↑ ↓", "© ® ™", "€ £ ¥ ₹",
    "∑ ∫ √ ∞ ≈", "♥ ♠ ♦ ♣", "😀", "😀😃😄", "👩‍🚀 astronaut", "👍🏽 thumbs up", "🇫🇷 flag", "❤️ red heart",
    "🏳️‍🌈", "a😀b", "100°", "𝕳𝖊𝖑𝖑𝖔", "e\u0301 decomposed", "zero\u200bwidth", "soft\u00adhyphen",
    "line\u2028separator", "no\u00a0break", "tab\there", "bell\u0007here", "unit\u001fseparator", "\ufeffbom",
]
EDGES = [
    "", " ", "\n", "one\ntwo\r\nthree", "a" * 200, "word " * 60, "1234567890" * 5, "é" * 40, "😀" * 30,
    "'s", "''s", "'S 'T 'RE", "o'clock", "'tis", "y'all've", "'ſ",
    "(parenthesised) [bracketed] {braced}", "semi;colon:comma,", "tilde~caret^pipe|back\\slash", "$100 50% #1",
]

WORDS = (
    "apple banana cherry dragon elephant fountain guitar hamburger igloo jellyfish kangaroo lighthouse "
    "mountain newspaper octopus penguin quilt rainbow submarine telescope umbrella volcano waterfall "
    "xylophone yacht zebra"
).split()
STYLES = ["a photo of the {}", "{} button", "a low-poly rendering of {}s"]


def main() -> None:
    spec = importlib.util.spec_from_file_location("tokenizer", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.SimpleTokenizer()
    texts = PLAIN + SCRIPTS + EDGES + [style.format(word) for word in WORDS for style in STYLES]
    print("[")
    for index, text in enumerate(texts):
        ids = tokenizer([text], context_length=CONTEXT_LENGTH)[0].tolist()
        while ids and ids[-1] == 0:
            ids.pop()
        line = json.dumps({"text": text, "ids": ids}, ensure_ascii=True)
        print(line + ("," if index + 1 < len(texts) else ""))
    print("]")


if __name__ == "__main__":
    main()
