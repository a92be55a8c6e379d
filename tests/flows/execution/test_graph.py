import errno
import os
import subprocess
import sys

import pytest

from flows.execution.graph import plan
from flows.execution.overrides import override
from stages.contract.errors import UserError
from stages.contract.params import load_params
from tests.flows.conftest import edit, wait_for


def to_run(root, *targets, force=()):
    return [stage.name for stage in plan(root, targets, force) if not stage.fresh]


def reasons(root):
    return {stage.name: stage.reasons for stage in plan(root)}


def test_first_plan_runs_everything_in_order_of_the_file(repo):
    stages = plan(repo)
    assert [stage.name for stage in stages] == ["copy", "lines", "upper", "report"]
    assert [stage.upstream for stage in stages] == [(), ("copy",), ("copy",), ("lines", "upper")]
    assert stages[0].reasons == ("no recorded result",)
    assert stages[3].reasons == ("no recorded result", "after lines, upper")


def test_meta_becomes_resource_retries_and_timeout(repo):
    stages = {stage.name: stage for stage in plan(repo)}
    assert (stages["upper"].resource, stages["upper"].retries, stages["upper"].timeout) == ("gpu", 2, 600)
    assert (stages["copy"].resource, stages["copy"].retries, stages["copy"].timeout) == ("cpu", 0, None)


def test_nothing_to_run_after_everything_ran(built):
    assert to_run(built) == []


def test_changed_param_reruns_only_its_readers_and_what_follows(built):
    edit(built / "params.yaml", "limit: 100", "limit: 99")
    assert reasons(built) == {
        "copy": (),
        "lines": (),
        "upper": ("eval.limit changed",),
        "report": ("after upper",),
    }


def test_changed_dependency_command_and_out_are_named(built):
    (built / "data.txt").write_text("c\nd\n")
    edit(built / "dvc.yaml", "wc -l", "wc -c")
    (built / "upper.txt").unlink()
    found = reasons(built)
    assert found["copy"] == ("data.txt changed",)
    assert found["lines"] == ("command changed", "after copy")
    assert found["upper"] == ("out upper.txt missing", "after copy")


def test_target_limits_the_plan_to_what_it_needs(repo):
    assert to_run(repo, "lines") == ["copy", "lines"]


def test_a_matrix_is_planned_row_by_row_and_named_as_a_whole(repo):
    matrix = """  rung:
    matrix: {row: [a, b]}
    cmd: sh -c 'mkdir -p rungs; echo ${item.row} > rungs/${item.row}'
    outs: ["rungs/${item.row}"]
  all:
    cmd: sh -c 'cat rungs/* > all.txt'
    deps: [rungs]
    outs: [all.txt]
"""
    (repo / "dvc.yaml").write_text((repo / "dvc.yaml").read_text() + matrix)
    assert to_run(repo, "all") == ["rung@a", "rung@b", "all"]
    assert to_run(repo, "rung") == to_run(repo, "rung@a", "rung@b") == ["rung@a", "rung@b"]
    assert [stage.name for stage in plan(repo, ["all"], ["rung"]) if stage.force] == ["rung@a", "rung@b"]


def test_force_runs_a_fresh_stage_and_plans_what_follows(built):
    assert to_run(built, force=["lines"]) == ["lines", "report"]
    assert [stage.name for stage in plan(built, force=["lines"]) if stage.force] == ["lines"]


def test_plan_does_not_depend_on_the_current_folder(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [stage.name for stage in plan(built)] == ["copy", "lines", "upper", "report"]


def test_missing_data_names_the_stage_the_path_and_the_parameter(make_repo):
    root = make_repo("stages: {pack: {cmd: 'true', deps: ['${data.sft.path}'], outs: [x.txt]}}")
    with pytest.raises(UserError) as error:
        plan(root)
    assert str(error.value) == (
        "stage pack needs data/sft, which does not exist. Set data.sft.path in params.yaml to the path of your data."
    )


def test_missing_data_that_dvc_tracks_says_how_to_fetch_it(built):
    subprocess.run(["dvc", "add", "-q", "data.txt"], cwd=built, check=True)
    (built / "data.txt").unlink()
    with pytest.raises(UserError, match=r"stage copy needs data\.txt, .* dvc pull data\.txt\.dvc"):
        plan(built)


def test_lost_out_of_an_upstream_stage_is_not_missing_data(built):
    (built / "copy.txt").unlink()
    found = reasons(built)
    assert (found["copy"], found["lines"]) == (("out copy.txt missing",), ("after copy",))


def test_override_is_written_with_its_comment_and_stays(built):
    path = built / "params.yaml"
    with override(path, ["eval.limit=99", "dpo.beta=0.2", 'data.sft.weights={"web/*": 0.5}']):
        assert to_run(built) == ["upper", "report"]
    assert load_params(path).data.sft.weights == {"web/*": 0.5}
    kept = {line.split("#")[0].strip(): "#" in line for line in path.read_text().splitlines()}
    assert kept["beta: 0.2"] and "limit: 99" in kept


def test_full_disk_costs_no_params(built, monkeypatch):
    path = built / "params.yaml"
    before = path.read_text()

    def full(path, overrides):
        path.write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dvc.utils.hydra.apply_overrides", full)
    with pytest.raises(OSError), override(path, ["eval.limit=99"]):
        pass
    assert path.read_text() == before and not list(built.glob(".params*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpo.beta=-1", r"params\.yaml: dpo\.beta: -1 is not allowed"),
        ("dpo.bta=1", r"-S dpo\.bta=1: .* no key dpo\.bta\. Did you mean dpo\.beta\? dpo has beta, loss, "),
        ("nothing.x=1", r"-S nothing\.x=1: .* Its top level has seed, "),
        ("seed.x=1", r"-S seed\.x=1: .* seed has no keys\."),
        ("data.sft.weights={", r"-S data\.sft\.weights=\{: "),
        ('data.sft.weights={"a": x}', r"params\.yaml: data\.sft\.weights"),
        ("dpo.beta", r"-S dpo\.beta: .*missing EQUAL"),
    ],
)
def test_refused_override_leaves_the_file_as_it_was(built, text, message):
    path = built / "params.yaml"
    before = path.read_text()
    with pytest.raises(UserError, match=message) as error, override(path, [text]):
        plan(built)
    assert path.read_text() == before
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("params.yaml", "seed: 0", "seed: -1", r"seed: -1 is not allowed"),
        ("dvc.yaml", "stages:\n", "stages:\n  - {", r"dvc\.yaml"),
        ("dvc.yaml", "    outs: [copy.txt]", "    uots: [copy.txt]", r"dvc\.yaml"),
        ("dvc.yaml", "outs: [report.txt]", "outs: [copy.txt]", r"copy\.txt"),
        ("dvc.yaml", "timeout: 600", "timeout: 1h", r"dvc\.yaml: upper: meta\.timeout is '1h'"),
        ("dvc.yaml", "retries: 2", "retries: -1", r"dvc\.yaml: upper: meta\.retries is -1"),
    ],
)
def test_broken_file_is_one_clear_line(repo, file, old, new, message):
    edit(repo / file, old, new)
    with pytest.raises(UserError, match=message) as error:
        plan(repo)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dvc.lock", "[]"),
        ("dvc.lock", "stages: 3"),
        ("dvc.lock", "schema: '2.0'\nstages: {copy: 3}"),
        ("dvc.lock", "schema: '2.0'\nstages: {copy: {cmd: 1}}"),
        ("dvc.lock", "schema: '2.0'\nstages: {copy: {cmd: a, deps: {b: 1}}}"),
        ("dvc.lock", "schema: '2.0'\nstages: {copy: {cmd: a, deps: [{path: 1}]}}"),
        ("dvc.lock", "schema: '2.0'\nstages: {copy: {cmd: a, params: {params.yaml: {seed: 2020-01-01}}}}"),
        ("dvc.lock", "a: &a [*a]"),
        ("dvc.lock", "\0"),
        ("dvc.yaml", "stages: {copy: 3}"),
        ("dvc.yaml", "stages: {copy: {cmd: 3}}"),
        ("dvc.yaml", "stages: [1]"),
        ("dvc.yaml", "3"),
        ("dvc.yaml", "stages: {copy: {cmd: a, meta: 3}}"),
        ("dvc.yaml", "stages: {copy: {cmd: a, meta: {retries: 1e9, resource: [gpu]}}}"),
        ("dvc.yaml", "stages: {copy: {cmd: a, deps: [2020-99-99]}}"),
        ("data.txt.dvc", "outs: 3"),
        ("data.txt.dvc", "outs:\n- md5: 3\n  path: data.txt"),
    ],
)
def test_dvc_file_of_odd_types_is_one_clear_line(repo, file, content):
    (repo / file).write_text(content)
    with pytest.raises(UserError) as error:
        plan(repo)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


ODD_INPUTS = {
    "pipe.jsonl": os.mkfifo,
    "dangling.jsonl": lambda path: path.symlink_to("/nonexistent"),
    "extra": lambda path: path.symlink_to(path.parent.parent),
    "caf\udce9.jsonl": lambda path: path.touch(),
}


def test_input_that_dvc_cannot_hash_is_refused_by_name(make_repo):
    root = make_repo("stages: {chats: {cmd: 'true', deps: ['${data.sft.path}'], outs: [x.txt]}}")
    folder = root / "data" / "sft"
    folder.mkdir(parents=True)
    for name, make in ODD_INPUTS.items():
        make(folder / name)
        with pytest.raises(UserError, match=name.partition("\udce9")[0]) as error:
            plan(root)
        assert len(str(error.value).splitlines()) == 1
        (folder / name).unlink()


def test_unknown_stage_lists_the_known_ones(repo):
    with pytest.raises(UserError, match=r"no stage 'uper' in dvc\.yaml\. Stages: copy, lines, upper, report"):
        plan(repo, ["uper"])


def test_outside_of_a_dvc_repository(tmp_path, repo):
    (tmp_path / "params.yaml").write_text((repo / "params.yaml").read_text())
    with pytest.raises(UserError, match="not inside of a DVC repository"):
        plan(tmp_path)


def test_another_dvc_process_at_work_is_one_clear_line(make_repo):
    waits = "sh -c 'touch started; while test ! -e go; do sleep 0.1; done; touch a.txt'"
    root = make_repo(f"stages:\n  a:\n    cmd: {waits}\n    deps: [data.txt]\n    outs: [a.txt]\n")
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q"], cwd=root, start_new_session=True)
    try:
        wait_for((root / "started").exists)
        with pytest.raises(UserError, match="another DVC process is at work here") as error:
            plan(root)
    finally:
        (root / "go").touch()  # DVC leaves SIGINT to its command
        other.wait()
    assert len(str(error.value).splitlines()) == 1
