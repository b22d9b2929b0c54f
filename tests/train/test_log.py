"""metrics.jsonl after kills: whole lines only, none beyond the checkpoint, other parts untouched."""

import json

import pytest

from ehrjax.train.log import MetricsLog, Progress, read_metrics, write_atomic


def test_no_file_yet_reads_as_nothing_and_is_made(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    MetricsLog(path).close()
    assert path.read_text() == ""


def test_resuming_drops_later_lines_and_half_lines_but_no_other_part(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keep = [{"step": 90, "part": "pretrain", "a": 1}, {"step": 4, "part": "task", "a": 2}]
    drop = [{"step": 8, "part": "task", "a": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in keep + drop) + '{"step": 9, "par')
    log = MetricsLog(path, part="task", resume_step=4)
    log.write(8, {"a": 5})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*keep, {"step": 8, "part": "task", "a": 5}]
    assert [row["a"] for row in read_metrics(path, part="task")] == [2, 5]


def test_a_whole_line_without_its_newline_is_not_glued_to_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 1}')
    log = MetricsLog(path, resume_step=2)
    log.write(2, {"a": 1})
    log.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_bytes_that_are_no_text_do_not_stop_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00\xfe\n[1]\n')
    MetricsLog(path, resume_step=1).close()
    assert path.read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_become_null(tmp_path, value):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"val/auroc": value})
    log.sync()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "val/auroc": null}\n'
    log.close()


def test_atomic_write_replaces_and_leaves_no_scrap(tmp_path):
    write_atomic(tmp_path / "a.json", "1")
    write_atomic(tmp_path / "a.json", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "2"


def test_off_a_terminal_progress_is_a_line_an_evaluation(capsys):
    bar = Progress(10)
    bar.step()
    bar.show({"loss": 0.5})
    bar.say("step 5 of 10, val/loss 0.4")
    bar.close()
    assert capsys.readouterr().err == "train: step 5 of 10, val/loss 0.4\n"


def test_on_a_terminal_the_bar_shows_loss_metric_and_speed(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = Progress(10, initial=4)
    bar.show({"loss": 0.51234, "val/auroc": 0.8, "examples/s": 1234.5})
    bar.step()
    bar.close()
    err = capsys.readouterr().err
    assert "5/10" in err and "loss=0.5123" in err and "val/auroc=0.8" in err and "examples/s=1234" in err
