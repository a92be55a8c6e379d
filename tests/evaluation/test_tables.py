import html.parser

from stages.evaluation.tables import write_samples_page


class Table(html.parser.HTMLParser):
    """(tag, class, text) of every cell."""

    def __init__(self):
        super().__init__()
        self.cells = []

    def handle_starttag(self, tag, attributes):
        if tag in ("td", "th"):
            self.cells.append([tag, dict(attributes).get("class"), ""])

    def handle_data(self, data):
        if self.cells and data.strip():
            self.cells[-1][2] += data


def test_the_models_answers_stand_side_by_side(tmp_path):
    prompt = '<|im_start|>user\n1 < 2 & "so" on?'
    answers = {
        name: [{"prompt": prompt, "answer": f"{name} <b>says</b>", "stopped": name != "base"}]
        for name in ("base", "sft", "dpo")
    }
    write_samples_page(tmp_path / "samples.html", answers)
    page = Table()
    page.feed((tmp_path / "samples.html").read_text(encoding="utf-8"))
    assert page.cells == [
        ["th", None, "prompt"], ["th", None, "base"], ["th", None, "sft"], ["th", None, "dpo"],
        ["td", None, prompt], ["td", None, "base <b>says</b>"],
        ["td", "stopped", "sft <b>says</b>"], ["td", "stopped", "dpo <b>says</b>"],
    ]  # fmt: skip
