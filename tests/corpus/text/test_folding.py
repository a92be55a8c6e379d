import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.corpus.dedup.paragraphs import cut_paragraphs, hash_paragraphs
from stages.corpus.dedup.signatures import sign, similarity
from stages.corpus.filtering.contamination import index, ngram_overlap
from stages.corpus.text.folding import fold, folded
from stages.corpus.text.words import column, texts
from tests.corpus.helpers import table

SAMPLES = {
    "fr": "L'été à Orléans, où j'étais allé chez ma grand-mère âgée, nous avons dégusté des crêpes puis écouté",
    "vi": "Tiếng Việt là ngôn ngữ của người Việt và là ngôn ngữ chính thức tại Việt Nam, được nhiều người nói",
    "ko": "한국어는 대한민국과 조선민주주의인민공화국의 공용어이다 한반도 전역과 제주도에서 쓰이며",
    "hi": "हिन्दी में लिखा हुआ एक वाक्य है और यह दूसरा है ज़मीन पर बड़े पेड़ हैं और नदी के किनारे लोग फ़सल काटते हैं",
    "bn": "বাংলা ভাষা একটি ইন্দো-আর্য ভাষা, যা দক্ষিণ এশিয়ার বাঙালি জাতির প্রধান কথ্য ও লেখ্য ভাষা এবং কোটি মানুষ বলে",
    "th": "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอนหรือวรรณยุกต์เช่นเดียวกับภาษาจีน น้ำทำให้",
    "ar": "اللغة العربيَّة هي أكثر اللغات تحدثًا ونطقًا ضمن مجموعة اللغات السامية وإحدى أكثر اللغات انتشارا في العالم",
    "ja": "ガラスのプログラミングを学ぶことはとても楽しいです。パソコンで日本語のテキストを書きます。",
}
FORMS = {form: lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")} | {
    "soft hyphens": lambda text: "".join(c + "\u00ad" * (c in "éa한ก") for c in text),
    "zero-width": lambda text: "\ufeff" + "\u200b".join(unicodedata.normalize("NFC", text)),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
}


@pytest.mark.parametrize("language", SAMPLES)
@pytest.mark.parametrize("form", FORMS)
def test_what_looks_alike_has_the_same_words(language, form):
    text = SAMPLES[language]
    other = FORMS[form](text)
    both = texts(table([text, other])["text"])
    signatures, _ = sign(both, 5, 120)
    assert similarity(signatures[:1], signatures[1:]) == 1
    assert ngram_overlap(both, index([[text]], 5)).documents.tolist() == [1, 1]
    assert ngram_overlap(both, index([[other]], 5)).documents.tolist() == [1, 1]


def test_ligatures_fonts_and_variation_selectors_are_letters_like_others():
    plain, odd = "The office of fine flour 10 heart", "The oﬃce of ﬁne ﬂour \U0001d7cf\U0001d7ce \U0001d421eart\ufe0f"
    signatures, _ = sign(texts(table([plain, odd])["text"]), 2, 60)
    assert similarity(signatures[:1], signatures[1:]) == 1
    assert fold("Straße™ ≠ … \u00b4") == "Straße™ ≠ … \u00b4", "symbols stay symbols"


characters = st.text(
    st.sampled_from(
        "ae n\n\u0301\u0323\u0308éẹ한\u1112\u1161\u11ab가\u09c7\u09be\u0e19\u0e49\u0e33ﬁ½😀\U0001d421\u0653\u064e\u0651"
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(st.lists(characters, max_size=4))
@example(["\u1112\u1161\u11ab"])
@example(["e\u0323\u0301", "e\u0301\u0323"])
@example(["\u00e9\u0323"])
@example(["a", "ﬁe\u0301"])
def test_documents_are_folded_as_their_texts_are(strings):
    documents = texts(table(strings)["text"])
    found = folded(documents)
    assert column(found).to_pylist() == [fold(text) for text in strings]
    assert folded(found).data.tolist() == found.data.tolist()


@pytest.mark.parametrize("text", [SAMPLES["fr"], SAMPLES["vi"], SAMPLES["ko"], "plain " * 99, "“quoted” — 5 ™ 😀 …"])
def test_texts_in_their_form_are_not_copied(text):
    documents = texts(table([text, "", text])["text"])
    assert np.shares_memory(folded(documents).data, documents.data)


def test_a_paragraph_in_another_form_is_cut_out_and_others_stay_as_written():
    said = unicodedata.normalize("NFD", SAMPLES["vi"])
    strings = [f"{SAMPLES['vi']}\n\nMới.", f"Cũ, e\u0301.\n\n{said}\n\nMới."]
    documents = texts(table(strings)["text"])
    hashes, counts, _ = hash_paragraphs(documents, 5)
    assert counts.tolist() == [1, 1] and hashes[0] == hashes[1]
    left = cut_paragraphs(documents, 5, counts, np.array([False, True]))
    assert column(left).to_pylist() == [strings[0], "Cũ, e\u0301.\n\nMới."]
