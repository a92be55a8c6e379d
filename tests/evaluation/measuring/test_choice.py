from stages.evaluation.measuring.choice import share, spread


def test_spread_takes_evenly_spaced_items():
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 10) == spread(range(3), None) == [0, 1, 2]
    assert spread([], 4) == []


def test_share_gives_each_source_its_share_and_cuts_at_a_character():
    documents = [
        {"text": "é" * 10, "source": "a"},
        {"text": "x" * 50, "source": "b"},
        {"text": "later", "source": "a"},
        {"text": "", "source": "c"},
        {"text": "later", "source": "b"},
    ]
    chosen = share(documents, 30)
    assert [(d["source"], d["text"]) for d in chosen] == [("a", "é" * 7), ("b", "x" * 15)]
    assert len(share(documents, None)) == 4
    assert [d["text"] for d in share(documents, 44)] == ["é" * 10, "x" * 22, "la"]
