"""Real text in three sizes, with natural duplicates and labelled copies.

The large one is the corpus of ``bench`` (JSONL, zstd; its texts may not be shipped, so it is named on the command line)
and documentation from Debian, of which some packages differ in little but their version. The two others are parts of
it, chosen by a hash of where a document comes from, so that versions of one stay together.
"""

import gzip
import html
import random
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import zstandard

SIZES = {"S": 0.08, "M": 0.32, "L": 0.64}  # of 0.78 GB
FILES = 4
PACKAGES = ("linux-doc-6.1", "linux-doc-6.12", "openjdk-17-doc")
OLDER = ("linux-doc-6.12",)  # taken in an older version too
TAG, SPACES = re.compile(r"<(script|style).*?</\1>|<[^>]*>", re.DOTALL), re.compile(r"[ \t]+\n|\n{3,}")
PAIRS = {"S": 3_000, "M": 8_000, "L": 16_000}  # labelled copies
PIECE = 1200  # characters of a labelled document
SIMILAR = (0.22, 0.98)  # Jaccard similarities that copies are made for, evenly


def make(work: Path, bench: Path) -> None:
    """Write ``work``/<size>/docs/<k>.jsonl (id, text, source) and ``work``/<size>/pairs.json [[id, its copy's id]]."""
    if all((work / size / "pairs.json").exists() for size in SIZES):
        return
    print("making the corpora", flush=True)
    texts = {}
    for origin, source, text in (*_bench(bench), *_debian(work / "debian")):
        texts.setdefault(f"{origin}#{zlib.crc32(text.encode()):08x}", (origin, source, text))
    for size, share in SIZES.items():
        chosen = {
            name: (source, text) for name, (origin, source, text) in texts.items() if _hash(origin) < share * 2**32
        }
        _write(work / size, chosen)


def _hash(origin: str) -> int:
    return zlib.crc32(origin.split("@")[0].encode())


def _write(folder: Path, chosen: dict[str, tuple[str, str]]) -> None:
    rng = random.Random(0)
    # Pieces of long prose, of which there is one version: nothing else is like them.
    long = [text for source, text in chosen.values() if source == "prose" and len(text) > 4 * PIECE]
    pieces = [text[at : at + PIECE] for text in long for at in range(PIECE, len(text) - PIECE, 2 * PIECE)]
    pairs = []
    for k, piece in enumerate(rng.sample(pieces, min(len(pieces), PAIRS[folder.name]))):
        chosen[f"piece-{k}"], chosen[f"copy-{k}"] = ("pieces", piece), ("copies", _copy(piece, rng))
        pairs.append([f"piece-{k}", f"copy-{k}"])
    names = list(chosen)
    rng.shuffle(names)
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    for part in range(FILES):
        with (folder / "docs" / f"{part}.jsonl").open("wb") as f:
            for name in names[part::FILES]:
                f.write(orjson.dumps({"id": name, "text": chosen[name][1], "source": chosen[name][0]}) + b"\n")
    (folder / "pairs.json").write_bytes(orjson.dumps(pairs))


def _copy(text: str, rng: random.Random) -> str:
    """``text`` with so many words changed that its shingles of five are about as similar as was drawn."""
    similarity = rng.uniform(*SIMILAR)
    share = 1 - (2 * similarity / (1 + similarity)) ** (1 / 5)  # (1 - share)^5 of the shingles stay as they are
    words = text.split(" ")
    for at in rng.sample(range(len(words)), max(1, round(share * len(words)))):
        words[at] = f"edit{rng.randrange(10**6)}"
    return " ".join(words)


def _bench(bench: Path) -> Iterator[tuple[str, str, str]]:
    for path in sorted(bench.glob("pretrain_*.jsonl.zst")):
        source = path.name.removeprefix("pretrain_").split(".")[0]
        with path.open("rb") as f:
            data = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(f).read()
        for line in data.split(b"\n"):
            if line:
                record = orjson.loads(line)
                yield record["id"], source, record["text"]


def _debian(folder: Path) -> Iterator[tuple[str, str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
    for package in PACKAGES:
        listed = subprocess.run(["apt-cache", "madison", package], capture_output=True, text=True, check=True).stdout
        versions = sorted({line.split("|")[1].strip() for line in listed.splitlines()})
        for version in versions[-1:] + (versions[:1] if package in OLDER else []):
            tree = folder / f"{package}@{version}".replace(":", ".")
            if not tree.exists():
                named = f"{package}={version}"
                subprocess.run(["apt-get", "download", "-qq", named], cwd=folder, check=True, capture_output=True)
                (deb,) = folder.glob("*.deb")
                subprocess.run(["dpkg-deb", "-x", deb, tree], check=True)
                deb.unlink()
            for path in sorted(tree.rglob("*")):
                if path.is_file() and path.suffix in (".html", ".gz", ".rst", ".txt"):
                    where = re.sub(r"-\d[\d.]*", "", str(path.relative_to(tree)))
                    for k, text in enumerate(_pieces(_text(path))):
                        yield f"{package.rstrip('0123456789.-')}/{where}/{k}@{version}", "debian", text


def _text(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error):
        return ""
    if path.suffix == ".html":
        text = html.unescape(TAG.sub(" ", text))
    return SPACES.sub("\n\n", text)


def _pieces(text: str) -> Iterator[str]:
    """Pieces of one to eight thousand characters, cut where the content says so: versions of a text are cut alike."""
    piece = ""
    for paragraph in text.split("\n\n"):
        piece += paragraph + "\n\n"
        if len(piece) > 8000 or (len(piece) > 1000 and zlib.crc32(paragraph.encode()) % 4 == 0):
            yield piece
            piece = ""
    if len(piece) > 200:
        yield piece
