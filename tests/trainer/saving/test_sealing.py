"""Whatever lies among the checkpoints, the newest whole one is found, and no damaged one keeps another's place."""

import json
import os
import random
import shutil

import pytest

from stages.trainer.saving import sealing

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
)


def make(scratch, step):
    folder = scratch / "partial" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(f"{name} of step {step}".encode() * 9)
    return sealing.publish(folder, scratch)


def newest(scratch):
    return next((p.name for p in sealing.numbered(scratch) if not sealing.damage(p)), None)


def manifest(content):
    return lambda folder: (folder / "manifest.json").write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )


def entry(change):
    def damage(folder):
        entries = json.loads((folder / "manifest.json").read_text())
        change(entries)
        (folder / "manifest.json").write_text(json.dumps(entries))

    return damage


def replaced(name, make_other):
    def damage(folder):
        (folder / name).unlink()
        make_other(folder / name)

    return damage


ODD = [None, [], {}, "x", 3, True, {"model.safetensors": 1}, {"model.safetensors": None}, {"model.safetensors": []},
       {"model.safetensors": [1]}, {"model.safetensors": ["1", "a"]}, {"model.safetensors": [1, 2]}, {"": [0, ""]},
       {"model.safetensors": [1, "0", 3]}, {"model.safetensors": [-1, ""]}, {"model.safetensors": [1e99, ""]},
       {"../checkpoint-34/model.safetensors": [1, ""]}, {"/etc/passwd": [1, ""]}, {"a\0b.safetensors": [1, ""]},
       {"x" * 5000: [1, ""]}, {"optimizer.pt": [1, "0"]}, [["model.safetensors", 1]]]  # fmt: skip
DAMAGES = {
    **{f"manifest {str(odd)[:40]!r}": manifest(odd) for odd in ODD},
    **{f"manifest of bytes {k}": manifest(b) for k, b in enumerate(
        [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"model.safetensors": [1' + b"0" * 5000]
    )},
    **{f"{name} truncated": (lambda f, n=name: os.truncate(f / n, 5)) for name in FILES},
    **{f"{name} empty": (lambda f, n=name: (f / n).write_bytes(b"")) for name in FILES},
    **{f"{name} missing": (lambda f, n=name: (f / n).unlink()) for name in (*FILES, "manifest.json")},
    **{f"{name} flipped": (lambda f, n=name: (f / n).write_bytes((f / n).read_bytes()[:-1] + b"?")) for name in FILES},
    **{f"{name} not listed": entry(lambda entries, n=name: entries.pop(n)) for name in FILES},
    **{f"{name} not listed and missing": (lambda f, n=name: (entry(lambda e: e.pop(n))(f), (f / n).unlink()))
       for name in FILES},
    **{f"{name} is {kind}": replaced(name, other) for name in ("manifest.json", "model.safetensors") for kind, other in
       {"a folder": os.mkdir, "a pipe": os.mkfifo, "a broken link": lambda p: p.symlink_to("nowhere"),
        "a link to itself": lambda p: p.symlink_to(p.name), "endless": lambda p: p.symlink_to("/dev/zero")}.items()},
    "another file beside": lambda f: (f / "evil.pt").write_bytes(b"x"),
    "an empty folder": lambda f: (shutil.rmtree(f), f.mkdir()),
    "a file": lambda f: (shutil.rmtree(f), f.write_text("x")),
    "a pipe": lambda f: (shutil.rmtree(f), os.mkfifo(f)),
    "a broken link": lambda f: (shutil.rmtree(f), f.symlink_to("nowhere")),
}  # fmt: skip
FOREIGN = (
    "checkpoint-45.tmp",
    "checkpoint-old",
    "checkpoint-",
    "checkpoint-0",
    "checkpoint--3",
    "checkpoint-1e3",
    "checkpoint-045",
    "checkpoint-4\uff15",
    "checkpoint-" + "9" * 200,
    "checkpoint-45 (copy)",
    "Checkpoint-99",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_gives_way_and_its_place(tmp_path, damage, capsys):
    make(tmp_path, 34)
    DAMAGES[damage](make(tmp_path, 45))
    assert newest(tmp_path) == "checkpoint-34"
    for step in (36, 38):
        make(tmp_path, step)
        sealing.prune(tmp_path)
    assert [p.name for p in sealing.numbered(tmp_path)] == ["checkpoint-38", "checkpoint-36"]
    assert not [p for p in sealing.numbered(tmp_path) if sealing.damage(p)]
    assert len(capsys.readouterr().out.splitlines()) <= 1


def test_foreign_names_are_left_alone(tmp_path):
    make(tmp_path, 34)
    make(tmp_path, 45)
    for name in FOREIGN:
        shutil.copytree(tmp_path / "checkpoint-45", tmp_path / name)
    assert newest(tmp_path) == "checkpoint-45"
    sealing.prune(tmp_path, keep=1)
    assert {p.name for p in tmp_path.iterdir()} == {"partial", "checkpoint-45", *FOREIGN}


def test_random_damage_never_raises(tmp_path):
    """Bytes changed, cut and doubled in any file of the newest, the manifest among them."""
    draw = random.Random(0)
    make(tmp_path, 34)
    for _ in range(60):
        folder = make(tmp_path, 45)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        file = folder / draw.choice(sorted(before))
        content = bytearray(before[file.name])
        for _ in range(draw.randint(1, 5)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        file.write_bytes(content[: draw.randint(0, len(content))] + content[: draw.choice((0, 0, 7))])
        whole = {p.name: p.read_bytes() for p in folder.iterdir()} == before
        assert newest(tmp_path) == ("checkpoint-45" if whole else "checkpoint-34")


def test_all_are_kept_for_who_judges_them(tmp_path, monkeypatch):
    monkeypatch.setenv("VERDICT_KEEP_CHECKPOINTS", "1")
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
        sealing.prune(tmp_path)
    assert len(sealing.numbered(tmp_path)) == 4
    monkeypatch.setenv("VERDICT_KEEP_CHECKPOINTS", "0")
    sealing.prune(tmp_path)
    assert len(sealing.numbered(tmp_path)) == 2


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = make(tmp_path, 1)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o666 & ~umask}
