import numpy as np
import pytest

from stages.contract.params import Dedup
from stages.corpus.dedup.shards import make_shards, units
from stages.corpus.reading.aside import SUMS, aside, intact
from tests.corpus.helpers import jsonl, source

PARAMS = Dedup(ngram=2, permutations=60, bands=20, threshold=0.5, paragraphs=0, against="none", memory_gib=1)


def damage(path, kind):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if kind == "cut" else content)


@pytest.mark.parametrize("kind", ["gone", "cut", "a bit flipped"])
@pytest.mark.parametrize("name", ["one", "two", SUMS])
def test_damage_is_seen_and_the_folder_can_be_made_again(tmp_path, capsys, name, kind):
    target = tmp_path / "made"
    assert not intact(target) and not capsys.readouterr().out
    for _ in range(2):
        with aside(target) as folder:
            (folder / "one").write_bytes(b"1" * 99)
            (folder / "two").write_bytes(b"2" * 2**21)
        assert intact(target)
        damage(target / name, kind)
        assert not intact(target) and capsys.readouterr().out == f"{target}: damaged; it is made again\n"


@pytest.mark.parametrize("kind", ["gone", "cut", "a bit flipped"])
def test_a_damaged_shard_of_an_interrupted_run_is_made_again(tmp_path, kind):
    path = jsonl(tmp_path / "a.jsonl", [{"id": f"{k:05}", "text": f"words of {k} " * 300} for k in range(900)])
    work = units(source(path), 2**24, tmp_path / "shards")
    made = make_shards(work, PARAMS, 2**24)
    before = [np.array(shard.array("text")) for shard in made]
    assert len(before) > 2
    damage(made[1].folder / "text.npy", kind)
    again = make_shards(work, PARAMS, 2**24)
    assert all(np.array_equal(shard.array("text"), old) for shard, old in zip(again, before, strict=True))
    damage(work[0].made, "cut")
    assert len(make_shards(work, PARAMS, 2**24)) == len(before)
