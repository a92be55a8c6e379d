"""What several rooms' tests share. No test asserts a time: the first of hypothesis's examples may import torch.

Hypothesis draws the same examples in each run; new ones with `pytest --hypothesis-profile=new`.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from stages.contract.params import Source
from stages.contract.process.imports import lighten_transformers
from stages.corpus.reading.documents import read_documents
from stages.corpus.tokens.vocabulary import CHAT_TEMPLATE, END_OF_TEXT, PAD, SPECIAL, TURN_END, TURN_START

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

lighten_transformers()  # before a test's module imports transformers
# Copies of this repository that tests make find the kernels compiled.
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / "stages/corpus/text/__pycache__"))

settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("same")


LONGEST = ("test_pipeline.py", "flows", "trainer")  # in tests/
SERVED = ("servers/test_browser.py", "servers/test_serve.py")  # whose last test ends what was served


def pytest_collection_modifyitems(config, items):
    """The longest first: a worker that began with them in the end would be left alone."""
    place = {name: k for k, name in enumerate(LONGEST)}
    below = config.rootpath / "tests"
    items.sort(key=lambda item: place.get(item.path.relative_to(below).parts[0], len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file goes to one worker, as by --dist loadfile, and so do the files of one `make serve`."""
    from xdist.scheduler import LoadFileScheduling

    class LoadTogether(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "served" if file.endswith(SERVED) else file

    return LoadTogether(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real prose, of lengths below, at and above the tiny model's context."""
    rows = read_documents(Source(path="data/validation", files="**/*")).table.to_pylist()
    return [row["text"][:size] for row, size in zip(rows[::9], (40, 300, 900, 2500, 3, 1200), strict=False)]


@pytest.fixture(scope="session")
def tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
    )
