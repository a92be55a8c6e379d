from stages.contract import Progress


def test_what_an_earlier_run_did_is_no_part_of_the_rate_and_nothing_done_is_no_error(capsys):
    progress = Progress("pack", total=100, unit="documents", every=0)
    progress.started -= 10
    progress.skip(50)
    progress.step(0)
    assert capsys.readouterr().out == ""
    progress.step(10)
    assert capsys.readouterr().out == "pack: 60/100 documents, 1/s, 40s left\n"
