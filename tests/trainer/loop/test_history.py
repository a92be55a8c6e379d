from stages.trainer.loop import history as log


def test_a_curve_is_of_the_steps_that_have_all_its_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "CURVE_POINTS", 2)
    history = [{"step": s, "loss": 1.0} | ({"stop": s / 10} if s != 3 else {}) for s in range(1, 6)]
    history.append({"step": 5, "train_loss": 1.0})
    log.write_curve(tmp_path / "curve.csv", history, ["stop"])
    assert (tmp_path / "curve.csv").read_text() == "step,stop\n2,0.15\n5,0.45\n"
    log.write_curve(tmp_path / "none.csv", history, ["kl"])
    assert (tmp_path / "none.csv").read_text() == "step,kl\n"
