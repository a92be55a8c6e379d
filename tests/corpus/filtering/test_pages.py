import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.contract.params import load_params
from stages.corpus.filtering.c4 import clean
from stages.corpus.filtering.fineweb import web_measures
from stages.corpus.text.words import column, texts
from tests.corpus.helpers import table

C4 = load_params().filter.c4.model_copy(update={"apply": True, "min_sentences": 1000})  # counts all of them


def cleaned(*documents: str, **changes):
    found, values, _ = clean(texts(table(documents)["text"]), C4.model_copy(update=changes))
    return column(found).to_pylist(), {name: column.tolist() for name, column in values.items()}


def reference(text: str, punctuated: bool) -> tuple[str, int, int]:
    """What C4's rules leave of ``text``, its lines with a forbidden phrase, and its sentences."""
    kept, forbidden, sentences = [], 0, 0
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or max(map(len, words)) > 1000:
            continue
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line.strip())
        if punctuated and (line.endswith("...") or not re.search(r"[.?!\"']$", line)):
            continue
        if re.search("javascript|terms of use|(privacy|cookie) policy|uses cookies|use (of )?cookies", line, re.I):
            continue
        forbidden += bool(re.search(r"lorem ipsum|\{", line, re.I))
        sentences += sentences_of(line)
        kept.append(line)
    return "\n".join(kept).rstrip(), forbidden, sentences


def sentences_of(line: str) -> int:
    """For words without abbreviations and ellipses: one more at each with a letter behind one that ends in a mark."""
    count, ended = 1, False
    for word in re.sub(r"(?<=[a-z])\.(?=[A-Z])", ". ", line).split():
        if ended and re.search(r"\w", word):
            count, ended = count + 1, False
        ended |= bool(re.search(r"[.?!]\W*$", word))
    return count


pieces = st.sampled_from(
    ["word ", "Some words", " here.", "Ends! ", "x" * 1001, "[1]", "[edit] ", "[citation needed]", "[no] ",
     "JavaScript ", "use of cookies ", "use cookie ", "Terms of Use", "{", "Lorem ", "ipsum ", " ", "\n", "\r\n",
     "\n\n", "é? ", "日本 ", "\u2028", "... ", '"quoted" ']
)  # fmt: skip
documents = st.lists(pieces, max_size=40).map("".join)


@settings(max_examples=200)
@given(st.lists(documents, min_size=1, max_size=4), st.booleans())
@example(["", "\n", "one two [1] three.\n[edit]", "a b c lorem\nipsum d e", "java\nscript is fine"], False)
def test_c4_leaves_what_plain_python_leaves(given_, punctuated):
    found, values = cleaned(*given_, final_punctuation=punctuated)
    for k, text in enumerate(given_):
        expected, forbidden, sentences = reference(text, punctuated)
        assert (found[k], values["c4_phrases"][k]) == (expected, forbidden)
        if "..." not in text:
            assert values["c4_sentences"][k] == sentences, text


def test_the_lines_of_each_rule_are_counted_and_the_first_is_known():
    long, phrase, open_ = "x" * 30 + " is too long.", "Please enable JavaScript here.", "This one has no end"
    documents = texts(
        table(["", f"two words\n\n \n{long}\n{open_}\nThis one does stay.\nand this", f"ß\n{phrase}"])["text"]
    )
    taken = clean(documents, C4.model_copy(update={"max_word_length": 20, "final_punctuation": True}))[2]
    assert taken[:, :, 0].tolist() == [[0, 0, 0, 0, 0], [5, 2, 1, 0, 1], [2, 1, 0, 1, 0]]
    rules = ((1, 1, "two words"), (1, 2, long), (1, 4, open_), (2, 1, "ß"), (2, 3, phrase))
    for document, rule, line in rules:
        _, start, stop = taken[document, rule]
        assert documents.data[start:stop].tobytes().decode() == line


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("One sentence and no more", 1),
        ("It ends. It goes on! Does it? Yes.", 4),
        ('He said "so it ends." (It did.) Then more.', 3),
        ("Mr. Smith of the U.S. Navy, e.g. J. Smith, came at 5 p.m. sharp.", 1),
        ("Wait... for it … here .. it is.", 1),
        ("A file like a.txt or version 3.11 ends nothing.It does here.", 2),
        ("In NASA. In 1990. That is 50%. Next one", 4),
        ("Ends here. ) ] '", 1),
    ],
)
def test_sentences(line, sentences):
    assert cleaned(line)[1]["c4_sentences"] == [sentences]


def test_sentences_are_counted_no_further_than_the_limit():
    assert cleaned("One is here. Two is here.\nThree is here.\nFour is here.", min_sentences=2)[1]["c4_sentences"] == [
        2
    ]


def test_phrases_are_those_of_the_parameters():
    found, values = cleaned("say ÄPFEL here\nand a Pear there\nor nothing at all",
                            drop_lines_with=["pear"], drop_documents_with=["at", "x"])  # fmt: skip
    assert found == ["say ÄPFEL here\nor nothing at all"] and values["c4_phrases"] == [1]
    assert cleaned("a { b c", drop_lines_with=[], drop_documents_with=[])[1]["c4_phrases"] == [0]


def fineweb(text: str) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return dict.fromkeys(("line_endings", "short_lines", "repeated_line_characters", "newlines"), 0.0)
    again = sum(len(line) for k, line in enumerate(lines) if line in lines[:k])
    return {
        "line_endings": sum(line[-1] in ".?!。‽" for line in lines) / len(lines),
        "short_lines": sum(len(line) <= 5 for line in lines) / len(lines),
        "repeated_line_characters": again / len(text.replace("\n", "")),
        "newlines": text.count("\n") / len(text.split()),
    }


@settings(max_examples=150)
@given(st.lists(st.lists(st.sampled_from(["a", "bc ", "é", "。", ".", "?", "‽", "\n", "\n\n", " \n", "\t", "word "]),
                         max_size=30).map("".join), min_size=1, max_size=4))  # fmt: skip
def test_fineweb_measures_agree_with_plain_python(given_):
    found = web_measures(texts(table(given_)["text"]), 5)
    for k, text in enumerate(given_):
        assert {name: values[k] for name, values in found.items()} == pytest.approx(fineweb(text)), text
